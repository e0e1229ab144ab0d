"""The files below a folder that git does not track, without those that .gitignore files leave out.

Follows no symbolic link. Knows nothing of what is in the files.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from .exclude import is_vendored

_MOST_ENTRIES = 2_000_000
_MOST_IGNORE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Rules:
    """What a .gitignore says of what is below its folder. folder: with `/` at its end, or empty."""

    folder: str
    spec: GitIgnoreSpec


def walk_files(top: Path, skipped: Counter[str]) -> Iterator[str]:
    """The files below a folder, relative to it, with `/`; what is left out is counted in `skipped`, by the reason.

    A vendored folder counts once, however much is in it; what is ignored does not count.
    """
    folders: list[tuple[str, tuple[_Rules, ...]]] = [("", ())]
    seen = 0
    while folders:
        folder, rules = folders.pop()
        entries = _entries(top, folder)
        if entries is None or seen > _MOST_ENTRIES:
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
    """What is in a folder, by name; None where it cannot be read."""
    try:
        with os.scandir(top / folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return None


def _with_rules(
    top: Path, folder: str, entries: Sequence[os.DirEntry[str]], rules: tuple[_Rules, ...]
) -> tuple[_Rules, ...]:
    """The rules of the folders around, and those of this one behind them. A line that is no pattern is passed over."""
    if not any(entry.name == ".gitignore" and entry.is_file(follow_symlinks=False) for entry in entries):
        return rules
    try:
        with (top / folder / ".gitignore").open(encoding="utf-8", errors="replace") as file:
            lines = file.read(_MOST_IGNORE_BYTES).splitlines()
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
    """Whether the innermost rule that says something about a path leaves it out. A folder's path ends with `/`."""
    for each in reversed(rules):
        if (verdict := each.spec.check_file(path.removeprefix(each.folder)).include) is not None:
            return verdict
    return False
