"""Reads files of a model's folder only if they are regular files of a plausible size.

Opening a pipe would block, and a device can be read without end.
"""

import errno
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from stat import S_ISREG

LONGEST_TEXT = 16_000_000
"""Bytes of a text file that describes a model; the longest known ones, indexes of shards, have a few million."""
LONGEST_TOKENIZER = 64_000_000
"""Bytes of a tokeniser's file; the longest known ones have half of that."""
MOST_FILES = 10_000
_TEXTS = {".json", ".txt", ".model", ".jinja", ".tiktoken", ".vocab"}
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.", "merges.", "spiece.", "sentencepiece.")


def texts_of(folder: Path, linked: Path | None = None) -> list[Path]:
    """Sorted text files of a model's folder and the folders in it, without hidden ones. None is opened.

    linked: another folder that links may lead into. Raises OSError, and ValueError, with a clause, where a file is not
    a regular one, lies elsewhere or is too long.
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
    """All that is no folder, links to folders included, which are not followed."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        linked = [name for name in folders if (Path(place) / name).is_symlink()]
        yield from (Path(place) / name for name in sorted([*names, *linked]) if not name.startswith("."))


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for reading; links are followed. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """The content of a text file that describes a model. Raises OSError, ValueError where it is too long."""
    with open_regular(path) as file:
        content = file.read(LONGEST_TEXT + 1)
    if len(content) > LONGEST_TEXT:
        raise ValueError(f"{path.name} has more than {LONGEST_TEXT} bytes")
    return content
