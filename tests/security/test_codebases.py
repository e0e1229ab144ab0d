"""What a folder of code can make a worker do: read no file outside of the roots, follow no link, run no command."""

from pathlib import Path

import pytest
from repositories import committed, git, write

from models.training.data.codebase import read_codebase
from models.training.errors import PathRefused


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return committed(tmp_path / "code")


def test_git_of_a_codebase_runs_no_command_and_sees_no_environment(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    write(repository, ".gitattributes", text="* filter=evil\n")
    write(repository, "a.py", text="changed = 1\n")
    script = tmp_path / "script.sh"
    script.write_text(f"#!/bin/sh\ntouch {ran}\ncat\n")
    script.chmod(0o755)
    for key in ("core.fsmonitor", "filter.evil.clean", "filter.evil.smudge", "core.pager", "core.sshCommand"):
        git(repository, "config", key, str(script))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "nowhere"))
    codebase = read_codebase(repository)
    assert codebase.commit is not None
    assert codebase.commit.endswith("+changes")
    assert not ran.exists()


def test_a_tracked_folder_that_became_a_link_is_not_followed(repository: Path, tmp_path: Path) -> None:
    write(tmp_path, "secret/stack.go", "secret/heap.rs")
    for name in ("stack.go", "heap.rs"):
        (repository / "pile" / name).unlink()
    (repository / "pile").rmdir()
    (repository / "pile").symlink_to(tmp_path / "secret")
    codebase = read_codebase(repository)
    assert [file.path for file in codebase.files] == ["a.py", "b.py"]
    assert codebase.skipped == {"symlink": 2}


@pytest.mark.parametrize("name", ["outside", "inside/escape", "inside/../outside", "inside-too", "/", "gone"])
def test_what_lies_outside_of_the_roots_is_refused_with_their_names(tmp_path: Path, name: str) -> None:
    write(tmp_path, "inside/a.py", "outside/b.py", "inside-too/c.py")
    (tmp_path / "inside" / "escape").symlink_to(tmp_path / "outside")
    roots = (tmp_path / "inside", tmp_path / "other root")
    with pytest.raises(PathRefused, match=r"outside of .*inside, .*other root"):
        read_codebase(tmp_path / name, roots)
