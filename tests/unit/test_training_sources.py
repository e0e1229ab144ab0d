"""Which files of a codebase are read: on real folders and real git repositories."""

import os
import subprocess
from pathlib import Path

import pytest

from models.training import sources
from models.training.errors import PathRefused
from models.training.sources import Codebase, read_codebase

CODE = "def add(a, b):\n    return a + b\n"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def write(folder: Path, *paths: str, text: str = CODE) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def paths(codebase: Codebase) -> list[str]:
    return [file.path for file in codebase.files]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A committed repository of a few files."""
    folder = tmp_path / "code"
    write(folder, "b.py", "a.py", "pile/stack.go", "pile/heap.rs")
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def test_git_tracked_files_are_read_in_order(repository: Path) -> None:
    write(repository, "untracked.py")
    codebase = read_codebase(repository, (repository.parent,))
    assert paths(codebase) == ["a.py", "b.py", "pile/heap.rs", "pile/stack.go"]
    assert [file.language for file in codebase.files] == ["python", "python", "rust", "go"]
    assert codebase.files[0].text == CODE
    assert codebase.commit == git(repository, "rev-parse", "HEAD")
    assert codebase.skipped == {}
    assert codebase == read_codebase(repository)


def test_a_folder_of_a_repository_is_a_codebase(repository: Path) -> None:
    (repository / "a.py").write_text("changed = 1\n")
    codebase = read_codebase(repository / "pile")
    assert paths(codebase) == ["heap.rs", "stack.go"]
    assert codebase.commit == git(repository, "rev-parse", "HEAD")  # what changed is not below it


@pytest.mark.parametrize("change", ["edit", "stage", "remove", "remove_staged", "add"])
def test_changes_since_the_commit_are_said(repository: Path, change: str) -> None:
    before = read_codebase(repository)
    match change:
        case "edit":
            write(repository, "a.py", text="changed = 1\n")
        case "stage":
            write(repository, "a.py", text="changed = 1\n")
            git(repository, "add", ".")
        case "remove":
            (repository / "a.py").unlink()
        case "remove_staged":
            git(repository, "rm", "a.py")
        case "add":
            write(repository, "new.py")
            git(repository, "add", ".")
    after = read_codebase(repository)
    assert after.commit == f"{before.commit}+changes"
    assert after.digest != before.digest
    assert after.skipped.get("missing", 0) == (change == "remove")


def test_line_ends_that_git_turned_are_no_change(repository: Path) -> None:
    (repository / "a.py").write_bytes(CODE.replace("\n", "\r\n").encode())
    assert read_codebase(repository).commit == git(repository, "rev-parse", "HEAD")


def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "b.py")
    git(tmp_path, "init")
    assert paths(read_codebase(tmp_path)) == ["a.py", "b.py"]
    git(tmp_path, "add", "a.py")
    codebase = read_codebase(tmp_path)
    assert (paths(codebase), codebase.commit) == (["a.py"], None)


def test_a_folder_that_git_ignores_is_walked_when_it_is_named(repository: Path) -> None:
    write(repository, ".gitignore", text="scratch/\n")
    write(repository, "scratch/c.py")
    codebase = read_codebase(repository / "scratch")
    assert (paths(codebase), codebase.commit) == (["c.py"], None)


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


def test_without_git_all_files_are_walked(repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tracked = read_codebase(repository)
    monkeypatch.setenv("PATH", str(tmp_path))
    walked = read_codebase(repository)
    assert walked.files == tracked.files
    assert (walked.commit, walked.digest) == (None, tracked.digest)


def test_gitignore_files_are_honoured(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "keep.log.py", "x.tmp.py", "out/b.py", "sub/x.tmp.py", "sub/only.py", "sub/deep/only.py")
    write(tmp_path, "sub/anchored.py", "sub/deep/anchored.py", "out/again.py")
    write(tmp_path, ".gitignore", text="# words\n*.tmp.py\nout/\n!keep.log.py\n***[\n\\\n")
    write(tmp_path, "sub/.gitignore", text="!x.tmp.py\n/anchored.py\ndeep/only.py\n")
    write(tmp_path, "out/.gitignore", text="!*\n")  # comes too late: the folder itself is ignored
    assert paths(read_codebase(tmp_path)) == [
        "a.py",
        "keep.log.py",
        "sub/deep/anchored.py",
        "sub/only.py",
        "sub/x.tmp.py",
    ]


@pytest.mark.parametrize("is_tracked", [True, False])
def test_what_is_left_out_is_counted(tmp_path: Path, is_tracked: bool) -> None:
    folder = tmp_path / "code"
    write(folder, "a.py", "node_modules/m/index.js", "api_pb2.py", "lib.min.js", "README.md", "poetry.lock")
    write(folder, "made.go", text="// Code generated by a tool. DO NOT EDIT.\npackage a\n")
    write(folder, "says.py", text='MARK = "@generated"\n')
    write(folder, "packed.js", text="f();" * 2_000)
    write(folder, "empty.py", text="\n")
    write(folder, "big.py", text="x = 1\n" * 200_000)
    (folder / "zero.c").write_bytes(b"int a;\0")
    (folder / "latin.py").write_bytes(b"x = '\xe9'\n")
    (folder / "marked.py").write_bytes(b"\xef\xbb\xbfx = 1\n")
    with (folder / "huge.py").open("wb") as file:
        file.truncate(50 << 20)
    (folder / "loop").symlink_to(".")
    (folder / "link.py").symlink_to("a.py")
    (folder / "outside.py").symlink_to("/etc/passwd")
    (folder / "dangling.py").symlink_to("nothing")
    if is_tracked:
        git(folder, "init")
        git(folder, "add", "-f", ".")
    codebase = read_codebase(folder)
    assert paths(codebase) == ["a.py", "marked.py", "says.py"]
    assert codebase.files[1].text == "x = 1\n"
    assert codebase.skipped == {
        "binary": 2,
        "empty": 1,
        "generated": 5,
        "not code": 1,
        "symlink": 4,
        "too large": 2,
        "vendored": 1,
    }


def test_a_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "huge.py").open("wb") as file:
        file.truncate(50 << 20)
    monkeypatch.setattr(sources, "decode", lambda content: pytest.fail("it was read"))
    assert read_codebase(tmp_path).skipped == {"too large": 1}


def test_pipes_and_folders_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "a.py")
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / os.fsdecode(b"\xff.py")).write_text(CODE)
    codebase = read_codebase(tmp_path)
    assert paths(codebase) == ["a.py"]
    assert codebase.skipped == {"name is not UTF-8": 1, "not a file": 1}


def test_a_tracked_folder_that_became_a_link_is_not_followed(repository: Path, tmp_path: Path) -> None:
    write(tmp_path, "secret/stack.go", "secret/heap.rs")
    for name in ("stack.go", "heap.rs"):
        (repository / "pile" / name).unlink()
    (repository / "pile").rmdir()
    (repository / "pile").symlink_to(tmp_path / "secret")
    codebase = read_codebase(repository)
    assert paths(codebase) == ["a.py", "b.py"]
    assert codebase.skipped == {"symlink": 2}


def test_a_submodule_is_left_out(repository: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write(other, "o.py")
    git(other, "init")
    git(other, "add", ".")
    git(other, "commit", "-m", "first")
    git(repository, "-c", "protocol.file.allow=always", "submodule", "add", str(other), "sub")
    codebase = read_codebase(repository)
    assert "sub/o.py" not in paths(codebase)
    assert codebase.skipped["submodule"] == 1


def test_bounds_keep_the_same_part_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, *(f"{letter}/{number}.py" for letter in "abcd" for number in range(25)))
    monkeypatch.setattr(sources, "_MOST_FILES", 20)
    codebase = read_codebase(tmp_path)
    assert len(codebase.files) == 20
    assert {path[0] for path in paths(codebase)} == set("abcd")
    assert paths(codebase) == sorted(paths(codebase))
    assert codebase.skipped == {"too many files": 80}
    assert codebase == read_codebase(tmp_path)
    monkeypatch.setattr(sources, "_MOST_BYTES", 5 * len(CODE))
    assert read_codebase(tmp_path).skipped == {"too many bytes": 95}


def test_the_digest_is_of_names_and_contents(tmp_path: Path) -> None:
    digests = set()
    for number, (name, text) in enumerate((("a.py", CODE), ("b.py", CODE), ("a.py", CODE + "\n"))):
        write(tmp_path / str(number), name, text=text)
        digests.add(read_codebase(tmp_path / str(number)).digest)
    write(tmp_path / "same", "a.py", "words.txt")
    assert len(digests) == 3
    assert read_codebase(tmp_path / "same").digest in digests


def test_an_empty_folder_is_an_empty_codebase(tmp_path: Path) -> None:
    codebase = read_codebase(tmp_path)
    assert (codebase.files, codebase.skipped, codebase.commit) == ([], {}, None)


def test_a_deep_tree_is_walked(tmp_path: Path) -> None:
    write(tmp_path, "d/" * 500 + "a.py")
    assert len(read_codebase(tmp_path).files) == 1


def test_a_link_to_a_codebase_inside_the_roots_is_one(tmp_path: Path) -> None:
    write(tmp_path / "real", "a.py")
    (tmp_path / "link").symlink_to("real")
    assert paths(read_codebase(tmp_path / "link", (tmp_path,))) == ["a.py"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "there is nothing of that name"),
        ("inside/a.py", "it is not a folder"),
        ("inside/a.py/b", "it is not a folder"),
        ("loop", "it cannot be opened"),
        ("inside/\0", "it cannot be opened"),
        ("x" * 5_000, "it cannot be opened"),
    ],
)
def test_what_is_no_folder_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    write(tmp_path, "inside/a.py")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(PathRefused, match=reason):
        read_codebase(tmp_path / name)


@pytest.mark.parametrize("name", ["outside", "inside/escape", "inside/../outside", "inside-too", "/", "gone"])
def test_what_lies_outside_of_the_roots_is_refused_with_their_names(tmp_path: Path, name: str) -> None:
    write(tmp_path, "inside/a.py", "outside/b.py", "inside-too/c.py")
    (tmp_path / "inside" / "escape").symlink_to(tmp_path / "outside")
    roots = (tmp_path / "inside", tmp_path / "other root")
    with pytest.raises(PathRefused, match=r"outside of .*inside, .*other root"):
        read_codebase(tmp_path / name, roots)


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("models.training.sources.os.scandir", refuse)
    with pytest.raises(PathRefused, match="may not read"):
        read_codebase(tmp_path)
