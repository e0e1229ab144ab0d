"""The step `collect`: from a folder of code, or given pairs, to the file of pairs of a run."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fake_encoder import FakeEncoder
from killed import kill_everywhere
from repositories import git
from workers import clean_environment

from models.catalogue import load_catalogue
from models.loading import loader
from models.training.data.collect import build_dataset, collect
from models.training.data.dataset import read_pairs
from models.training.data.file_kinds import is_test_file
from models.training.data.records import Manifest
from models.training.errors import MalformedPair, NoPairs, PathRefused, TrainingError
from models.training.progress import Collected, Event, Failed, Note, read_event
from models.training.run import RunFolder, RunSpec, TrainingOptions
from models.weights.hub import locate

PYTHON = '''
def {verb}_{noun}(values):
    """{Verb} every {noun} of the values that somebody gave, and say how many there were."""
    found = [value for value in values if value.{noun}]
    for one in found:
        one.{verb}({noun}=True)
    return len(found), "{verb} {noun}"


def test_{verb}_{noun}(make):
    assert {verb}_{noun}(make("{noun}", {verb}=False)) == (1, "{verb} {noun}")
'''
GO = """
// {Verb}{Noun} takes what it needs to {verb} one {noun} from the store, and puts it back.
func {Verb}{Noun}(store *Store, {noun} string) error {{
	{verb} := store.Take({noun})
	return store.Put({verb}, {noun})
}}
"""
VERBS = ("open", "close", "paint", "weigh", "count", "sell")
NOUNS = ("door", "ship", "apple", "letter", "engine", "mirror", "candle", "bottle")


def written(folder: Path, nouns: tuple[str, ...] = NOUNS) -> Path:
    """A codebase of a Python and a Go file for each noun."""
    folder.mkdir()
    for noun in nouns:
        for template, name in ((PYTHON, f"{noun}s.py"), (GO, f"{noun}.go")):
            parts = [template.format(verb=v, Verb=v.title(), noun=noun, Noun=noun.title()) for v in VERBS]
            (folder / name).write_text(("package store\n" if name.endswith("go") else "") + "".join(parts))
    return folder


@pytest.fixture
def code(tmp_path: Path) -> Path:
    return written(tmp_path / "code")


def run_of(tmp_path: Path, **fields: Any) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    spec = RunSpec(
        job="job-1",
        entry=load_catalogue().get("minilm"),
        parent="base",
        training_data=tmp_path / "training_data",
        day=date(2026, 3, 1),
        **{"base": tmp_path / "base", "options": TrainingOptions(hard_negatives=0), "device": "cpu", **fields},
    )
    run.spec.write_text(spec.model_dump_json())
    return run


def collected(run: RunFolder) -> list[Event]:
    said: list[Event] = []
    collect(run, said.append)
    return said


def test_a_codebase_becomes_a_file_of_pairs(code: Path, tmp_path: Path) -> None:
    (code / "logo.py").write_bytes(b"\x89PNG\0")
    (code / "broken.py").write_text("def (:\n" * 40)
    run = run_of(tmp_path, codebase=code, roots=(tmp_path,))
    note, last = collected(run)
    pairs, manifest = read_pairs(run.data), json.loads(run.manifest.read_bytes())
    assert note == Note(text="files left out: 1 binary")
    assert last == Collected(pairs=manifest["pairs"], held_out=manifest["held_out"], digest=manifest["digest"])
    assert manifest["pairs"] + manifest["held_out"] == len(pairs) >= 60
    assert set(manifest["kinds"]) >= {"docstring", "test"}
    assert set(manifest["languages"]) == {"python", "go"}
    assert {pair.file for pair in pairs if pair.split == "train"}.isdisjoint(
        pair.file for pair in pairs if pair.split == "held_out"
    )
    assert (tmp_path / "training_data" / "day-2026-03-01.jsonl").read_bytes() == run.data.read_bytes()


@pytest.fixture
def repository(code: Path) -> Path:
    """The code in git, with callers, a copy of a file, and what nobody is to learn from."""
    text = (code / "doors.py").read_text()
    calls = [
        f"def {noun}_day(values, log):\n    log.{noun}()\n    {noun}s = {verb}_{noun}(values)\n    return {noun}s\n"
        for noun, verb in zip(NOUNS[1:], VERBS * 2, strict=False)
    ]
    (code / "days.py").write_text("\n\n".join(calls))
    for name in ("doors_copy.py", "vendor/doors.py", "doors_pb2.py"):
        (code / name).parent.mkdir(exist_ok=True)
        (code / name).write_text(text)
    (code / "large.py").write_text("# much\n" * 200_000)
    (code / "link.py").symlink_to("doors.py")
    (code / ".gitignore").write_text("ignored.py\n")
    (code / "ignored.py").write_text(text.replace("door", "ignored"))
    git(code, "init", "--quiet")
    git(code, "add", ".")
    git(code, "commit", "--quiet", "-m", "All of it")
    return code


def test_a_repository_is_collected_with_its_commit(repository: Path, tmp_path: Path) -> None:
    (repository / "untracked.py").write_text((repository / "doors.py").read_text().replace("door", "untracked"))
    run = run_of(tmp_path, codebase=repository)
    note, last = collected(run)
    pairs, manifest = read_pairs(run.data), Manifest.model_validate_json(run.manifest.read_bytes())
    assert note == Note(text="files left out: 1 generated, 1 not code, 1 symlink, 1 too large, 1 vendored")
    assert manifest.commit == git(repository, "rev-parse", "HEAD")
    assert manifest.sha256 == sha256(run.data.read_bytes()).hexdigest()
    assert (manifest.files, manifest.source, manifest.seed) == (2 * len(NOUNS) + 2, str(repository), 0)
    assert manifest.skipped == {"generated": 1, "not code": 1, "symlink": 1, "too large": 1, "vendored": 1}
    assert manifest.kinds == Counter(pair.kind for pair in pairs)
    assert manifest.languages == Counter(pair.language for pair in pairs)
    assert set(manifest.kinds) == {"docstring", "call", "test", "symbol"}
    assert last == Collected(pairs=manifest.pairs, held_out=manifest.held_out, digest=manifest.digest)
    texts = "".join(text for pair in pairs for text in (pair.anchor, pair.positive))
    assert "untracked" not in texts
    assert "ignored" not in texts


def test_pairs_of_a_repository_are_consistent(repository: Path, tmp_path: Path) -> None:
    collected(run := run_of(tmp_path, codebase=repository))
    pairs = read_pairs(run.data)
    for pair in pairs:
        if pair.kind == "docstring":
            assert pair.anchor not in pair.positive
            assert not is_test_file(pair.file)
        if pair.kind == "test":
            (tested,) = re.findall(r"def test_(\w+)\(make", pair.anchor)
            assert pair.positive.startswith(f"def {tested}(")
        if pair.kind == "call":
            called = pair.positive.removeprefix("def ").partition("(")[0]
            assert f"{called}(values)" in pair.anchor
            assert not called.endswith("door")
        if pair.kind == "symbol":  # of two languages; the copy of a file makes none
            assert "func " in pair.anchor + pair.positive
            assert "def " in pair.anchor + pair.positive
    (repository / "more.py").write_text("x = 1\n")
    git(repository, "add", "more.py")
    assert build_dataset(repository, TrainingOptions(hard_negatives=0)).manifest.commit == (
        git(repository, "rev-parse", "HEAD") + "+changes"
    )


def test_a_finished_collection_does_not_read_the_code_again(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    *_, last = collected(run := run_of(tmp_path, codebase=code))
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in run.path.iterdir()}
    monkeypatch.setattr("models.training.data.collect.read_codebase", None)
    assert collected(run) == [last]
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in run.path.iterdir()} == before


def test_a_finished_collection_is_not_repeated(code: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, codebase=code)
    *_, last = collected(run)
    (code / "doors.py").unlink()
    before = run.data.read_bytes()
    (tmp_path / "training_data" / "day-2026-03-01.jsonl").unlink()
    assert collected(run) == [last]
    assert run.data.read_bytes() == before == (tmp_path / "training_data" / "day-2026-03-01.jsonl").read_bytes()


def test_pairs_without_a_manifest_are_collected_anew(code: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, codebase=code)
    collected(run)
    before = run.data.read_bytes()
    run.data.write_bytes(b"half of a li")
    run.manifest.unlink()
    collected(run)
    assert run.data.read_bytes() == before
    assert len(list((tmp_path / "training_data").iterdir())) == 2


def test_a_killed_collection_is_completed_the_next_time(tmp_path: Path) -> None:
    expected: list[bytes] = []

    def prepare(folder: Path) -> None:
        given_pairs(folder / "given.jsonl")
        run_of(folder, given=folder / "given.jsonl")

    def check(folder: Path, is_done: bool) -> None:
        run = RunFolder(folder / "run")
        if run.manifest.exists():
            manifest = Manifest.model_validate_json(run.manifest.read_bytes())
            assert manifest.sha256 == sha256(run.data.read_bytes()).hexdigest()
        if is_done:
            expected.append(run.data.read_bytes())
            assert sorted(path.name for path in run.path.iterdir()) == ["data.jsonl", "manifest.json", "run.json"]

    kill_everywhere(
        tmp_path / "killed", prepare, lambda folder: collect(RunFolder(folder / "run"), lambda _: None), check
    )
    assert len(expected) > 5
    assert len(set(expected)) == 1


def given_pairs(path: Path, *more: str) -> None:
    lines = [json.dumps({"anchor": f"question{n} of{n}", "positive": f"answer{n} to{n}"}) for n in range(40)]
    path.write_text("\n".join([*lines, *more]))


def test_location_and_times_of_the_code_do_not_count(repository: Path, tmp_path: Path) -> None:
    options = TrainingOptions(hard_negatives=2)
    copy = shutil.copytree(repository, tmp_path / "deeper" / "copy", symlinks=True)
    for path in copy.rglob("*.py"):
        os.utime(path, (1, 1), follow_symlinks=False)
    one, other = build_dataset(repository, options), build_dataset(copy, options)
    assert one.lines() == other.lines()
    assert one.manifest.model_copy(update={"source": other.manifest.source}) == other.manifest


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_bytes_are_the_same_in_every_process(code: Path, tmp_path: Path, hash_seed: str) -> None:
    expected = build_dataset(code, TrainingOptions(hard_negatives=3, seed=5)).lines()
    program = (
        "import sys; from pathlib import Path; from models.training.data.collect import build_dataset;"
        "from models.training.run import TrainingOptions;"
        "made = build_dataset(Path(sys.argv[1]), TrainingOptions(hard_negatives=3, seed=5));"
        "sys.stdout.buffer.write(made.lines())"
    )
    environment = clean_environment(PYTHONHASHSEED=hash_seed)
    done = subprocess.run([sys.executable, "-c", program, str(code)], capture_output=True, check=True, env=environment)
    assert done.stdout == expected
    assert b'"negatives":["' in expected


def test_another_seed_gives_other_bytes(code: Path) -> None:
    one, other = (build_dataset(code, TrainingOptions(seed=seed)).lines() for seed in (0, 1))
    assert one != other


def test_one_file_alone_is_split_with_a_note(tmp_path: Path) -> None:
    code = written(tmp_path / "code", ("door",))
    (code / "door.go").unlink()
    text = "".join(PYTHON.format(verb=verb, Verb=verb.title(), noun=noun) for verb in VERBS for noun in NOUNS)
    (code / "doors.py").write_text(text)
    note, last = collected(run_of(tmp_path, codebase=code))
    assert isinstance(note, Note)
    assert note.text.startswith("there is one file alone: ")
    assert isinstance(last, Collected)
    assert last.held_out


def test_an_empty_folder_is_refused_with_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "logo.png").write_bytes(b"\x89PNG\0")
    run = run_of(tmp_path, codebase=tmp_path / "code")
    with pytest.raises(NoPairs, match="0 files of code with 0 functions and classes, 0 documented; files left out: 1"):
        collected(run)
    assert [path.name for path in run.path.iterdir()] == ["run.json"]
    assert not (tmp_path / "training_data").exists()


def test_code_without_documentation_is_refused_with_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("".join(f"def f{n}():\n    return {n}\n\n" for n in range(30)))
    with pytest.raises(NoPairs, match="1 files of code with 30 functions and classes, 0 documented"):
        collected(run_of(tmp_path, codebase=tmp_path / "code"))


def test_code_outside_the_roots_is_refused(code: Path, tmp_path: Path) -> None:
    with pytest.raises(PathRefused):
        collected(run_of(tmp_path, codebase=code, roots=(tmp_path / "elsewhere",)))


def test_given_pairs_are_used_unchanged(tmp_path: Path) -> None:
    given_pairs(tmp_path / "given.jsonl")
    run = run_of(tmp_path, given=tmp_path / "given.jsonl")
    (last,) = collected(run)
    assert isinstance(last, Collected)
    assert last.pairs + last.held_out == 40
    assert not (tmp_path / "training_data").exists()
    (tmp_path / "given.jsonl").write_text("nonsense")
    run.manifest.unlink()
    with pytest.raises(MalformedPair, match="line 1"):
        collected(run)


def test_the_operators_pairs_are_written_beside_given_ones(code: Path, tmp_path: Path) -> None:
    given_pairs(tmp_path / "given.jsonl")
    (tmp_path / "judge.jsonl").write_bytes((tmp_path / "given.jsonl").read_bytes())
    run = run_of(tmp_path, given=tmp_path / "given.jsonl", judge=tmp_path / "judge.jsonl")
    collected(run)
    assert [pair.split for pair in read_pairs(run.judge)] == ["held_out"] * 40
    run.manifest.unlink()
    run.spec.write_text(run.read().model_copy(update={"judge": code, "roots": (tmp_path,)}).model_dump_json())
    collected(run)
    assert Counter(pair.split for pair in read_pairs(run.judge)).keys() == {"train", "held_out"}


def test_unusable_evaluation_data_ends_the_job_and_is_named(code: Path, tmp_path: Path) -> None:
    given_pairs(tmp_path / "given.jsonl")
    (tmp_path / "broken").write_text("{")
    run = run_of(tmp_path, given=tmp_path / "given.jsonl", roots=(tmp_path / "elsewhere",))
    for judge, reason in (
        (tmp_path / "nowhere", "No such file"),
        (tmp_path / "broken", "line 1"),
        (code, "it lies outside of"),
    ):
        run.spec.write_text(run.read().model_copy(update={"judge": judge}).model_dump_json())
        with pytest.raises(TrainingError, match=rf"^finetune\.judge, .*{reason}"):
            collected(run)
    assert not run.manifest.exists()


def test_a_run_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoPairs):
        collected(run_of(tmp_path))


@pytest.mark.parametrize(("memory_tokens", "notes"), [(1_000_000, 0), (1, 1)])
def test_the_model_finds_negatives_within_its_memory_limit(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_tokens: int, notes: int
) -> None:
    encoder = FakeEncoder(memory_tokens=memory_tokens)
    asked: list[Any] = []
    monkeypatch.setattr(loader, "load", lambda spec, options: asked.append(options) or encoder)
    options = TrainingOptions(hard_negatives=1)
    said = collected(run := run_of(tmp_path, codebase=code, options=options, memory_bytes=1 << 33))
    assert asked[0].folder == tmp_path / "base"
    assert encoder.batches or notes
    assert all(pair.negatives for pair in read_pairs(run.data) if pair.split == "train")
    assert len(said) == 1 + notes
    if notes:
        assert said[0] == Note(text="memory was short: hard negatives were found by words alone")
        assert run.data.read_bytes() == build_dataset(code, options).lines()


def stepped(run: RunFolder) -> tuple[int, list[Event]]:
    """The step in a process of its own -> its exit code, and what it said."""
    command = [sys.executable, "-m", "models.training", "collect", str(run.path)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=100)
    assert done.stderr == ""
    return done.returncode, [read_event(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_the_model_itself_finds_negatives(repository: Path, tmp_path: Path) -> None:
    entry = load_catalogue().get("minilm")
    run = run_of(tmp_path, codebase=repository, base=locate(entry), options=TrainingOptions(hard_negatives=2))
    code, (*_, last) = stepped(run)
    assert (code, last.event) == (0, "collected")
    pairs = read_pairs(run.data)
    secret = {text for pair in pairs if pair.split == "held_out" for text in (pair.anchor, pair.positive)}
    assert secret
    for pair in pairs:
        assert len(set(pair.negatives)) == (2 if pair.split == "train" else 0)
        assert secret.isdisjoint(pair.negatives)
        assert pair.positive not in pair.negatives
    by_words = build_dataset(repository, TrainingOptions(hard_negatives=2))
    assert [pair.positive for pair in pairs] == [pair.positive for pair in by_words.pairs]
    assert pairs != by_words.pairs


@pytest.mark.slow
def test_negatives_are_found_by_words_when_memory_is_short(code: Path, tmp_path: Path) -> None:
    entry, options = load_catalogue().get("minilm"), TrainingOptions(hard_negatives=1)
    run = run_of(tmp_path, codebase=code, base=locate(entry), options=options, memory_bytes=1 << 22)
    returned, (note, last) = stepped(run)
    assert note == Note(text="memory was short: hard negatives were found by words alone")
    assert (returned, last.event) == (0, "collected")
    assert run.data.read_bytes() == build_dataset(code, options).lines()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"codebase": "code", "roots": ("elsewhere",)}, "code cannot be trained on: it lies outside of "),
        ({"codebase": "nowhere"}, "nowhere cannot be trained on: there is nothing of that name"),
        ({"codebase": "given.jsonl"}, "given.jsonl cannot be trained on: it is not a folder"),
        ({"codebase": "elsewhere"}, "there is too little to train on: 0 files of code"),
        ({"given": "given.jsonl"}, "line 41 is no training pair: it is no JSON"),
        ({}, "there is too little to train on: neither a codebase nor pairs were given"),
    ],
)
def test_a_failing_process_emits_the_reason(code: Path, tmp_path: Path, fields: dict[str, Any], reason: str) -> None:
    given_pairs(tmp_path / "given.jsonl", "nonsense")
    (tmp_path / "elsewhere").mkdir()
    paths = {name: tmp_path / path if isinstance(path, str) else (tmp_path / path[0],) for name, path in fields.items()}
    run = run_of(tmp_path, **paths)
    returned, (failed,) = stepped(run)
    assert isinstance(failed, Failed)
    assert reason in failed.reason
    assert (returned, [path.name for path in run.path.iterdir()]) == (1, ["run.json"])


def test_the_process_emits_events(code: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path, codebase=code)
    returned, (collected,) = stepped(run)
    manifest = Manifest.model_validate_json(run.manifest.read_bytes())
    assert collected == Collected(pairs=manifest.pairs, held_out=manifest.held_out, digest=manifest.digest)
    assert returned == 0
    assert stepped(run) == (0, [collected])
