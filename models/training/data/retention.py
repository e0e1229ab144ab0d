"""Which files of training data are kept: `day-YYYY-MM-DD.jsonl`, and its manifest beside it, by count and age."""

import re
from datetime import UTC, datetime
from pathlib import Path

from ...weights.durable import clear_leftovers, discard

_NAME = re.compile(r"(day-(\d{4}-\d\d-\d\d)(?:\.([1-9]\d{0,8}))?)(\.manifest\.json|\.jsonl)", re.ASCII)
_Filed = tuple[datetime, int]
"""The day of a file, and which one of that day it is."""


def prune_training_data(folder: Path, keep: int, older_than: datetime) -> list[str]:
    """Remove files of pairs that are not among the `keep` newest and are of a day before `older_than` -> their names.

    Days are those of UTC; older_than: with a time zone. Other files are left alone. Raises OSError.
    """
    clear_leftovers(folder)
    filed = _filed(folder)
    newest_first = sorted(filed, key=lambda name: filed[name], reverse=True)
    removed = [name for name in newest_first[keep:] if filed[name][0] < older_than]
    for name in removed:
        discard(folder / f"{name}.jsonl")
        discard(folder / f"{name}.manifest.json")
    return [f"{name}.jsonl" for name in removed]


def _filed(folder: Path) -> dict[str, _Filed]:
    """Names without their suffix. A manifest that lost its pairs counts too, so that it goes as well."""
    found: dict[str, _Filed] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(path.name):
            name, day, number, _ = match.groups()
            try:
                found[name] = datetime.fromisoformat(day).replace(tzinfo=UTC), int(number or 1)
            except ValueError:  # there is no such day
                continue
    return found
