"""Files of a model's folder, opened only where they are files: a pipe would be waited for, and a device read for ever.

Owns what such a folder may have in it, and how long what describes a model may be. Knows no model.
"""

import errno
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from stat import S_ISREG

LONGEST_TEXT = 16_000_000
"""Bytes of a file that describes a model; the longest that are known, indexes of shards, have a few million."""

LONGEST_TOKENIZER = 64_000_000
"""The longest known have half of that."""
MOST_FILES = 10_000
_TEXTS = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab"}
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.", "merges.", "spiece.", "sentencepiece.")


def texts_of(folder: Path, linked: Path | None = None) -> list[Path]:
    """The files that describe the model in a folder and those below it, sorted; those that a dot begins are left out.

    linked: the folder besides it that links may lead into. Raises ValueError, with a clause, where anything there is no
    file, lies elsewhere or is longer than any that is known; OSError. Nothing is opened.
    """
    places = [place.resolve() for place in (folder, linked) if place is not None]
    found = []
    for count, path in enumerate(_below(folder)):
        name = path.relative_to(folder).as_posix()
        if count == MOST_FILES:
            raise ValueError(f"there are more than {MOST_FILES} files in {folder}")
        if not any(path.resolve().is_relative_to(place) for place in places):
            raise ValueError(f"{name} is a link out of its folder")
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise ValueError(f"{name} is not a regular file")
        if path.suffix in _TEXTS:
            most = LONGEST_TOKENIZER if name.rpartition("/")[2].startswith(_TOKENIZER) else LONGEST_TEXT
            if status.st_size > most:
                raise ValueError(f"{name} has {status.st_size} bytes, and {most} are the most that is read")
            found.append(path)
    return sorted(found)


def _below(folder: Path) -> Iterator[Path]:
    """All that is no folder; a link to a folder is not followed."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in sorted([*names, *linked]) if not name.startswith("."))


def open_regular(path: Path) -> BufferedReader:
    """A regular file, behind all links, to be read. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """What a file that describes a model holds. Raises OSError, ValueError for a longer one than any that is known."""
    with open_regular(path) as file:
        content = file.read(LONGEST_TEXT + 1)
    if len(content) > LONGEST_TEXT:
        raise ValueError(f"{path.name} has more than {LONGEST_TEXT} bytes")
    return content
