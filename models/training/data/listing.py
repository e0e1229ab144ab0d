"""The files of a codebase: those that git tracks, or else all below its folder that no .gitignore excludes.

The folder may belong to someone else. So git runs without the caller's environment, locks, hooks, filters and network,
and for a limited time; and the walk follows no symbolic link.
"""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha1, sha256
from pathlib import Path
from typing import Literal

from pathspec import GitIgnoreSpec

from .file_kinds import is_vendored

_TIME_LIMIT_S = 60
_SAFELY = ("-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
_ENVIRONMENT = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "none", "LC_ALL": "C"}
_KINDS: dict[bytes, Literal["symlink", "submodule"]] = {b"120000": "symlink", b"160000": "submodule"}
_MAX_ENTRIES = 2_000_000
_MAX_IGNORE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Tracked:
    """The tracked files below a folder. files: the object id by path, relative to the folder.

    left_out: symbolic links and submodules, by path. commit: HEAD; None before the first commit. is_staged: whether the
    index differs from it below the folder.
    """

    files: dict[str, str]
    left_out: dict[str, Literal["symlink", "submodule"]]
    commit: str | None
    is_staged: bool


def tracked_files(folder: Path) -> Tracked | None:
    """What git tracks below a folder of a work tree; None if that is nothing, or git is missing or fails."""
    index = _git(folder, "ls-files", "-z", "--stage")
    if not index:
        return None
    files: dict[str, str] = {}
    left_out: dict[str, Literal["symlink", "submodule"]] = {}
    for mode, name, object_id in map(_staged, filter(None, index.split(b"\0"))):
        if mode in _KINDS:
            left_out[name] = _KINDS[mode]
        else:
            files[name] = object_id
    head = _git(folder, "rev-parse", "--verify", "HEAD")
    tree = _git(folder, "ls-tree", "-r", "-z", "HEAD") if head else None
    committed = dict(map(_committed, filter(None, tree.split(b"\0")))) if tree is not None else {}
    is_staged = {name: id_ for name, id_ in committed.items() if name not in left_out} != files
    return Tracked(files, left_out, head.decode().strip() if head else None, is_staged)


def is_unchanged(content: bytes, object_id: str) -> bool:
    """Whether a file has the content of a git object, as it is or with Unix line ends."""
    digest = sha256 if len(object_id) == 64 else sha1
    variants = (content, content.replace(b"\r\n", b"\n"))
    return any(
        digest(b"blob %d\0" % len(each) + each, usedforsecurity=False).hexdigest() == object_id for each in variants
    )


def _staged(entry: bytes) -> tuple[bytes, str, str]:
    """`mode id stage<TAB>name` -> mode, name, id."""
    facts, _, name = entry.partition(b"\t")
    mode, object_id, _ = facts.split(b" ")
    return mode, os.fsdecode(name), object_id.decode()


def _committed(entry: bytes) -> tuple[str, str]:
    """`mode type id<TAB>name` -> name, id."""
    facts, _, name = entry.partition(b"\t")
    return os.fsdecode(name), facts.rsplit(b" ", 1)[1].decode()


def _git(folder: Path, *arguments: str) -> bytes | None:
    """The output of git; None if it fails or takes too long."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | _ENVIRONMENT
    try:
        done = subprocess.run(
            ["git", *_SAFELY, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIME_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@dataclass(frozen=True, slots=True)
class _Rules:
    """The patterns of a .gitignore. folder: with a final `/`, or empty."""

    folder: str
    spec: GitIgnoreSpec


def walk_files(top: Path, skipped: Counter[str]) -> Iterator[str]:
    """The files below a folder, relative to it, with `/`; what is skipped is counted in `skipped` by reason.

    A vendored folder counts once, with all its files; ignored files do not count.
    """
    folders: list[tuple[str, tuple[_Rules, ...]]] = [("", ())]
    seen = 0
    while folders:
        folder, rules = folders.pop()
        entries = _entries(top, folder)
        if entries is None or seen > _MAX_ENTRIES:
            skipped["unreadable" if entries is None else "too many files"] += 1
            continue
        seen += len(entries)
        rules = _with_rules(top, folder, entries, rules)
        below = []
        for entry in entries:
            path = folder + entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if entry.name == ".git" or _is_ignored(path + "/" * is_folder, rules):
                continue
            if entry.is_symlink():
                skipped["symlink"] += 1
            elif not is_folder:
                yield path
            elif is_vendored(path + "/"):
                skipped["vendored"] += 1
            else:
                below.append((path + "/", rules))
        folders += reversed(below)


def _entries(top: Path, folder: str) -> list[os.DirEntry[str]] | None:
    try:
        with os.scandir(top / folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return None


def _with_rules(
    top: Path, folder: str, entries: Sequence[os.DirEntry[str]], rules: tuple[_Rules, ...]
) -> tuple[_Rules, ...]:
    """The rules of the enclosing folders, then those of this one. A line that is no valid pattern is skipped."""
    if not any(entry.name == ".gitignore" and entry.is_file(follow_symlinks=False) for entry in entries):
        return rules
    try:
        with (top / folder / ".gitignore").open(encoding="utf-8", errors="replace") as file:
            lines = file.read(_MAX_IGNORE_BYTES).splitlines()
    except OSError:
        return rules
    return (*rules, _Rules(folder, GitIgnoreSpec.from_lines(filter(_is_pattern, lines))))


def _is_pattern(line: str) -> bool:
    try:
        GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True


def _is_ignored(path: str, rules: Sequence[_Rules]) -> bool:
    """Whether the innermost rule that matches a path excludes it. A folder's path ends with `/`."""
    for each in reversed(rules):
        if (verdict := each.spec.check_file(path.removeprefix(each.folder)).include) is not None:
            return verdict
    return False
