"""What git knows of a folder: its tracked files and its commit.

Owns how git is called: with nothing of the caller's environment, without locks, hooks, filters or a network, and for a
limited time, because the folder may belong to somebody else. Knows nothing of what is in the files.
"""

import os
import subprocess
from dataclasses import dataclass
from hashlib import sha1, sha256
from pathlib import Path
from typing import Literal

_TIME_LIMIT_S = 60
_SAFELY = ("-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
_ENVIRONMENT = {"GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "none", "LC_ALL": "C"}
_KINDS: dict[bytes, Literal["symlink", "submodule"]] = {b"120000": "symlink", b"160000": "submodule"}


@dataclass(frozen=True, slots=True)
class Tracked:
    """The tracked files below a folder. files: the object id by path, relative to the folder.

    left_out: symbolic links and submodules, by path. commit: HEAD, None before the first one. is_staged: whether the
    index differs from it below the folder.
    """

    files: dict[str, str]
    left_out: dict[str, Literal["symlink", "submodule"]]
    commit: str | None
    is_staged: bool


def tracked_files(folder: Path) -> Tracked | None:
    """What git tracks below a folder of a work tree; None where that is nothing, or git is not there or fails."""
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
    """Whether a file has the content that git knows by an id, as it is or with the line ends of Unix."""
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
    """What git answers; None where it fails, or takes too long."""
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
