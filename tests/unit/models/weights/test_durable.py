"""Files and folders that appear whole or not at all: killed before each operation, and on a full disk."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killed import kill_everywhere

from models.weights import durable


def folder_with(path: Path, text: str) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "a").write_text(text)
    (path / "inner" / "b").write_text(text)
    return path


def whole(path: Path, text: str) -> bool:
    return (path / "a").read_text() == text == (path / "inner" / "b").read_text()


def visible(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_file_is_the_old_one_or_the_new_one_whenever_its_writer_is_killed(tmp_path):
    def prepare(folder: Path) -> None:
        (folder / "file").write_bytes(b"old")

    def check(folder: Path, done: bool) -> None:
        assert visible(folder) == {"file"}
        assert (folder / "file").read_bytes() in ((b"new",) if done else (b"old", b"new"))

    kill_everywhere(tmp_path, prepare, lambda folder: durable.write_durably(folder / "file", b"new"), check)


def test_a_folder_appears_whole_whenever_its_publisher_is_killed(tmp_path):
    def prepare(folder: Path) -> None:
        folder_with(folder / ".new", "new")

    def publish(folder: Path) -> None:
        if (folder / ".new").is_dir():
            durable.publish_folder(folder / ".new", folder / "final")

    def check(folder: Path, done: bool) -> None:
        assert whole(folder / "final", "new") if done or (folder / "final").exists() else whole(folder / ".new", "new")

    kill_everywhere(tmp_path, prepare, publish, check)


def test_a_link_leads_to_the_old_target_or_to_the_new_one_whenever_its_mover_is_killed(tmp_path):
    def prepare(folder: Path) -> None:
        durable.point(folder / "link", "old")

    def check(folder: Path, done: bool) -> None:
        assert str((folder / "link").readlink()) in (("new",) if done else ("old", "new"))
        assert visible(folder) == {"link"}

    kill_everywhere(tmp_path, prepare, lambda folder: durable.point(folder / "link", "new"), check)


def test_a_folder_is_there_whole_or_not_at_all_whenever_its_remover_is_killed(tmp_path):
    def prepare(folder: Path) -> None:
        folder_with(folder / "going", "old")

    def check(folder: Path, done: bool) -> None:
        assert not (folder / "going").exists() if done else visible(folder) <= {"going"}
        assert not (folder / "going").exists() or whole(folder / "going", "old")

    kill_everywhere(tmp_path, prepare, lambda folder: durable.discard(folder / "going"), check)


def test_nothing_is_published_over_what_is_there(tmp_path):
    new = folder_with(tmp_path / ".new", "new")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    folder_with(tmp_path / "full", "old")
    for name in ("empty", "dangling", "full"):
        with pytest.raises(FileExistsError):
            durable.publish_folder(new, tmp_path / name)
    assert whole(new, "new")
    assert whole(tmp_path / "full", "old")


def test_of_two_publishers_one_is_refused(tmp_path, monkeypatch):
    """The other comes first after this one has looked."""
    new = folder_with(tmp_path / ".new", "new")
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    folder_with(tmp_path / "final", "other")
    with pytest.raises(FileExistsError):
        durable.publish_folder(new, tmp_path / "final")
    assert whole(tmp_path / "final", "other")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            durable.write_durably(tmp_path / "file", b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_files_links_and_nothing_can_be_discarded_too(tmp_path):
    target = folder_with(tmp_path / "target", "kept")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "file").write_text("x")
    for name in ("link", "file", "nothing"):
        durable.discard(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert whole(target, "kept")


def test_leftovers_of_processes_that_are_gone_are_cleared_and_no_others(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    ours = durable.temporary_name(tmp_path / "ours")
    host = ours.name.split(".")[-1].split("-")[0]
    before = folder_with(tmp_path / f".a.{host}-{int(gone.stdout)}-00000000-0", "x")
    restarted = tmp_path / f".b.{host}-{os.getpid()}-00000000-0"
    elsewhere = tmp_path / f".c.00000000-{int(gone.stdout)}-00000000-0"
    others = [tmp_path / ".hidden", tmp_path / "20260101-000000-abc", ours, elsewhere]
    alive = tmp_path / f".d.{host}-{os.getppid()}-00000000-0"
    for path in (restarted, alive, *others):
        path.write_text("x")
    durable.clear_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([alive, *others])
    assert not before.exists()
    long_ago = time.time() - 2 * 86_400
    os.utime(elsewhere, (long_ago, long_ago))
    durable.clear_leftovers(tmp_path)
    durable.clear_leftovers(tmp_path / "nowhere")
    assert not elsewhere.exists()


def test_temporary_names_are_hidden_free_and_not_too_long(tmp_path):
    names = {durable.temporary_name(tmp_path / ("n" * 255)) for _ in range(100)}
    assert len(names) == 100
    assert all(path.parent == tmp_path and path.name.startswith(".") and len(path.name) < 255 for path in names)
