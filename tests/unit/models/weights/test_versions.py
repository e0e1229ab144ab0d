"""Versions of a model on disk: which is live, and that none is ever incomplete, whenever the process is killed."""

import errno
import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
from killed import kill_everywhere
from trained_versions import FIRST_DAY, is_whole, serve, trained

from models.errors import UnknownVersion
from models.weights.version_history import REPORT, history
from models.weights.versions import (
    BASE,
    LATEST,
    PREVIOUS,
    RECORD,
    keep,
    live_version,
    make_live,
    previous_version,
    prune,
    record_of,
    version_folder,
    versions,
)

LATER = FIRST_DAY + timedelta(days=365)


def kept(checkpoints: Path, days: int) -> list[str]:
    """As many versions of the model `mine`, the oldest first."""
    names = []
    for day in range(days):
        candidate = checkpoints.parent / f"run-{day}"
        name = trained(candidate, f"weights {day}", day=day)
        keep(candidate, checkpoints, "mine", name)
        names.append(name)
    return names


def all_whole(checkpoints: Path) -> bool:
    return all(is_whole(checkpoints / "mine" / name) for name in versions(checkpoints, "mine") if name != BASE)


def marks(checkpoints: Path) -> tuple[str, str | None]:
    return live_version(checkpoints, "mine"), previous_version(checkpoints, "mine")


def test_a_candidate_becomes_a_version_and_doing_it_again_changes_nothing(tmp_path):
    name = trained(tmp_path / "run", "new")
    folder = keep(tmp_path / "run", tmp_path / "checkpoints", "mine", name)
    assert folder == tmp_path / "checkpoints" / "mine" / name
    assert is_whole(folder)
    assert not (tmp_path / "run").exists()
    assert keep(tmp_path / "run", tmp_path / "checkpoints", "mine", name) == folder
    assert trained(tmp_path / "run", "new") == name
    assert keep(tmp_path / "run", tmp_path / "checkpoints", "mine", name) == folder
    assert not (tmp_path / "run").exists()


def test_other_weights_never_take_a_versions_place(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    (name,) = kept(checkpoints, 1)
    trained(tmp_path / "other", "other")
    (tmp_path / "plain").mkdir()
    damaged = trained(tmp_path / "damaged", "x") and tmp_path / "damaged"
    (damaged / RECORD).write_text("{")
    for candidate in (tmp_path / "other", tmp_path / "plain", damaged):
        with pytest.raises(FileExistsError):
            keep(candidate, checkpoints, "mine", name)
        assert candidate.is_dir()
    assert (checkpoints / "mine" / name / "model.safetensors").read_text() == "weights 0"


@pytest.mark.parametrize("name", [BASE, LATEST, PREVIOUS, "", "..", ".hidden", "a/b", "../elsewhere", "a" * 129, "ä"])
def test_a_name_that_no_version_can_have_is_refused(tmp_path, name):
    trained(tmp_path / "run")
    with pytest.raises(UnknownVersion):
        keep(tmp_path / "run", tmp_path / "checkpoints", "mine", name)
    assert is_whole(tmp_path / "run")


def test_a_candidate_that_is_gone_is_no_version(tmp_path):
    with pytest.raises(FileNotFoundError):
        keep(tmp_path / "nothing", tmp_path / "checkpoints", "mine", "v1")
    assert versions(tmp_path / "checkpoints", "mine") == (BASE,)


def no_rename_between(monkeypatch, one: Path, other: Path) -> None:
    """As if these folders lay on two file systems."""
    rename = os.rename

    def across(source, target, **where):
        if Path(source).is_relative_to(one) and Path(target).is_relative_to(other):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target, **where)

    monkeypatch.setattr(os, "rename", across)


@pytest.mark.parametrize("across", [False, True], ids=["one file system", "two"])
@pytest.mark.slow
def test_a_version_is_kept_whole_whenever_the_process_is_killed(tmp_path, monkeypatch, across):
    names = []

    def prepare(folder: Path) -> None:
        if across:
            no_rename_between(monkeypatch, folder / "run", folder / "checkpoints")
        names[:] = [*kept(folder / "checkpoints", 1), trained(folder / "run", "new", day=1)]
        serve(folder / "checkpoints", "mine", names[0])

    def check(folder: Path, done: bool) -> None:
        assert all_whole(folder / "checkpoints")
        assert live_version(folder / "checkpoints", "mine") == names[0]
        there = versions(folder / "checkpoints", "mine")
        assert there == (BASE, *names) if done else there in ((BASE, names[0]), (BASE, *names))
        assert names[1] in there or is_whole(folder / "run")
        assert not (done and (folder / "run").exists())

    kill_everywhere(
        tmp_path, prepare, lambda folder: keep(folder / "run", folder / "checkpoints", "mine", names[1]), check
    )


@pytest.mark.parametrize("to_base", [False, True], ids=["to a version", "to base"])
def test_the_old_version_is_live_or_the_new_one_whenever_the_process_is_killed(tmp_path, to_base):
    names = []

    def prepare(folder: Path) -> None:
        names[:] = kept(folder, 3)
        for name in names[:2]:
            serve(folder, "mine", name)

    def check(folder: Path, done: bool) -> None:
        old, new = names[1], BASE if to_base else names[2]
        assert all_whole(folder)
        assert versions(folder, "mine") == (BASE, *names)
        assert marks(folder) in ([(new, old)] if done else [(old, names[0]), (old, None), (new, old)])

    kill_everywhere(tmp_path, prepare, lambda folder: serve(folder, "mine", BASE if to_base else names[2]), check)


def test_pruning_leaves_whole_versions_whenever_the_process_is_killed(tmp_path):
    names = []

    def prepare(folder: Path) -> None:
        names[:] = kept(folder, 4)
        serve(folder, "mine", names[1])

    def check(folder: Path, done: bool) -> None:
        assert all_whole(folder)
        assert live_version(folder, "mine") == names[1]
        assert {names[1], names[3]} <= set(versions(folder, "mine"))
        assert not done or versions(folder, "mine") == (BASE, names[1], names[3])

    kill_everywhere(tmp_path, prepare, lambda folder: prune(folder, "mine", names, 1, LATER), check)
    assert not list(tmp_path.glob("*/mine/.*"))


def test_the_live_version_moves_on_and_back_and_remembers_the_one_before(tmp_path):
    first, second = kept(tmp_path, 2)
    assert marks(tmp_path) == (BASE, None)
    serve(tmp_path, "mine", BASE)
    assert marks(tmp_path) == (BASE, None)
    for version, expected in (
        (first, (first, BASE)),
        (first, (first, BASE)),
        (second, (second, first)),
        (first, (first, second)),
        (BASE, (BASE, first)),
        (BASE, (BASE, first)),
        (second, (second, BASE)),
    ):
        serve(tmp_path, "mine", version)
        assert marks(tmp_path) == expected
        folder = version_folder(tmp_path, "mine")
        assert folder == (None if version == BASE else (tmp_path / "mine" / version).resolve())
    with pytest.raises(UnknownVersion):
        serve(tmp_path, "mine", "nothing")
    assert marks(tmp_path) == (second, BASE)


def test_the_previous_version_is_the_one_that_is_named_even_if_it_is_not_here(tmp_path):
    first, second = kept(tmp_path, 2)
    for version, previous, expected in (
        (first, second, (first, second)),
        (first, "elsewhere", (first, None)),
        (second, None, (second, None)),
        (BASE, first, (BASE, first)),
    ):
        make_live(tmp_path, "mine", version, previous)
        assert marks(tmp_path) == expected
    make_live(tmp_path, "nothing here yet", BASE, "elsewhere")
    assert live_version(tmp_path, "nothing here yet") == BASE


def test_a_link_that_leads_nowhere_counts_as_base(tmp_path):
    first, second = kept(tmp_path, 2)
    serve(tmp_path, "mine", first)
    serve(tmp_path, "mine", second)
    for gone in (first, second):
        (tmp_path / "mine" / gone).rename(tmp_path / gone)
    assert marks(tmp_path) == (BASE, None)
    serve(tmp_path, "mine", BASE)
    (tmp_path / second).rename(tmp_path / "mine" / second)
    assert live_version(tmp_path, "mine") == BASE


def test_a_version_may_lie_elsewhere(tmp_path):
    """A link to a folder of the user's own is as good as a folder."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "v1").symlink_to("../elsewhere")
    serve(tmp_path, "mine", "v1")
    assert marks(tmp_path) == ("v1", BASE)
    assert version_folder(tmp_path, "mine") == (tmp_path / "elsewhere").resolve()
    assert prune(tmp_path, "mine", ["v1"], 0, LATER) == []


def test_pruning_goes_by_count_and_age_and_spares_what_serves_or_was_not_trained(tmp_path):
    names = kept(tmp_path, 6)
    serve(tmp_path, "mine", names[0])
    serve(tmp_path, "mine", names[1])
    (tmp_path / "mine" / "own").mkdir()
    assert prune(tmp_path, "mine", [*names, "own"], 6, LATER) == []
    assert prune(tmp_path, "mine", [*names, "own"], 0, FIRST_DAY) == []
    assert prune(tmp_path, "mine", names[5:], 1) == []
    assert prune(tmp_path, "mine", [*names, "own"], 1, FIRST_DAY + timedelta(days=3)) == [names[2]]
    assert prune(tmp_path, "mine", [*names, "own"], 1, LATER) == [names[4], names[3]]
    assert versions(tmp_path, "mine") == (BASE, names[0], names[1], names[5], "own")
    assert prune(tmp_path, "unknown", names, 0, LATER) == []


def test_history_has_each_version_newest_first_and_base_last(tmp_path):
    trained(tmp_path / "mine" / "a", "a")
    metrics = {"mrr": 0.5, "gone": float("nan"), "text": "x"}
    report = {"accepted": False, "reasons": ["MRR@10 is worse"], "metrics": metrics, "losses": [1, 2]}
    trained(tmp_path / "mine" / "b", "b", parent="a", day=1, **report)
    serve(tmp_path, "mine", "a")
    b, a, base = history(tmp_path, "mine")
    assert (b.name, b.live, b.previous, b.accepted, b.reasons) == ("b", False, False, False, ["MRR@10 is worse"])
    assert (b.metrics, b.pairs, b.problem) == ({"mrr": 0.5}, 4950, None)
    assert b.record is not None
    assert (b.record.parent, b.made_at) == ("a", FIRST_DAY + timedelta(days=1))
    assert (a.name, a.live, a.accepted, a.metrics, a.problem) == ("a", True, None, {}, None)
    assert a.size_bytes == sum(path.stat().st_size for path in (tmp_path / "mine" / "a").rglob("*") if path.is_file())
    assert (base.name, base.live, base.previous, base.made_at, base.size_bytes) == (BASE, False, True, None, None)
    assert [version.name for version in history(tmp_path, "unknown")] == [BASE]


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        (RECORD, b"{", "is damaged"),
        (RECORD, b"\xff", "is damaged"),
        (RECORD, b"[" * 100_000, "is damaged"),
        (RECORD, b"{}", "is damaged: model: Field required"),
        (RECORD, None, "it has no training_config.json"),
        (REPORT, b"", "report/report.json is damaged"),
        (REPORT, b'{"accepted": "perhaps"}', "accepted: "),
        (REPORT, b'{"accepted": true, "metrics": 1}', "metrics: "),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_and_hides_nothing(tmp_path, file, content, told):
    trained(tmp_path / "mine" / "good", "good", accepted=True)
    trained(tmp_path / "mine" / "bad", "bad", accepted=True)
    (tmp_path / "mine" / "bad" / file).unlink()
    if content is not None:
        (tmp_path / "mine" / "bad" / file).write_bytes(content)
    by_name = {version.name: version for version in history(tmp_path, "mine")}
    assert by_name["good"].problem is None
    assert told in (by_name["bad"].problem or "")
    assert by_name["bad"].made_at is not None
    assert (by_name["bad"].record is None) == (file == RECORD)


def test_a_file_that_may_not_be_opened_is_reported(tmp_path):
    trained(tmp_path / "mine" / "bad", "bad")
    (tmp_path / "mine" / "bad" / RECORD).unlink()
    (tmp_path / "mine" / "bad" / RECORD).mkdir()
    assert "Is a directory" in (history(tmp_path, "mine")[0].problem or "")


def test_a_record_without_a_time_zone_is_damaged(tmp_path):
    trained(tmp_path, "x")
    fields = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps({**fields, "created_at": "2026-01-01T00:00:00"}))
    with pytest.raises(ValueError, match="timezone"):
        record_of(tmp_path)
