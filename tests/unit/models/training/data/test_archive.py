"""The archive of training data is pruned by count and age, and no manifest is left without its pairs."""

from datetime import UTC, datetime
from pathlib import Path

from killed import kill_everywhere

from models.training.data.dataset import prune_archive

LATER = datetime(2027, 1, 1, tzinfo=UTC)
DAYS = ("day-2026-01-01", "day-2026-01-02", "day-2026-01-02.2", "day-2026-01-02.10", "day-2026-01-03")


def archived(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in DAYS:
        (folder / f"{name}.jsonl").write_text("{}")
        (folder / f"{name}.manifest.json").write_text("{}")


def jsonl(*names: str) -> list[str]:
    return [f"{name}.jsonl" for name in names]


def test_the_archive_is_pruned_by_count_and_age_with_its_manifests(tmp_path):
    folder = tmp_path / "data"
    assert prune_archive(folder, 0, LATER) == []
    archived(folder)
    other_files = {folder / name for name in ("day-2026-13-01.jsonl", "day-2026-01-01.jsonl.bak", "mine.jsonl")}
    for path in other_files:
        path.write_text("x")
    assert prune_archive(folder, 5, LATER) == []
    assert prune_archive(folder, 0, datetime(2026, 1, 1, tzinfo=UTC)) == []
    assert prune_archive(folder, 4, LATER) == jsonl(DAYS[0])
    assert prune_archive(folder, 0, datetime(2026, 1, 3, tzinfo=UTC)) == jsonl(DAYS[3], DAYS[2], DAYS[1])
    assert set(folder.iterdir()) == other_files | {folder / f"{DAYS[4]}.jsonl", folder / f"{DAYS[4]}.manifest.json"}


def test_no_pairs_are_left_without_manifest_whenever_the_pruning_is_killed(tmp_path):
    def check(folder: Path, done: bool) -> None:
        left = {path.name for path in (folder / "data").iterdir() if not path.name.startswith(".")}
        manifests = {name for name in left if name.endswith(".manifest.json")}
        assert {f"{name.removesuffix('.jsonl')}.manifest.json" for name in left - manifests} <= manifests
        assert not done or left == {f"{DAYS[4]}.jsonl", f"{DAYS[4]}.manifest.json"}

    kill_everywhere(
        tmp_path,
        lambda folder: archived(folder / "data"),
        lambda folder: prune_archive(folder / "data", 1, LATER),
        check,
    )
