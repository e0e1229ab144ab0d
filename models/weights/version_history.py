"""The history of a model: its versions, with their training records and the verdicts of their verification.

A file that cannot be read is reported with its version, of which the rest is returned.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from ..errors import fault_text
from .versions import BASE, RECORD, TrainingRecord, live_version, made_at, previous_version, record_of, versions

REPORT = "report/report.json"
OWN_DATA = "by its own data only"
"""`judged` of a version that was trained and verified on a caller's pairs, because the operator has none."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a model. Of `base`, the entry's own weights, only the name and the marks are known.

    made_at: its record's time, else its folder's. size_bytes: of all its files. accepted, judged, reasons, metrics: of
    its Verdict, if there is one. problem: which of its files cannot be read.
    """

    name: str
    live: bool
    previous: bool
    made_at: datetime | None = None
    size_bytes: int | None = None
    record: TrainingRecord | None = None
    accepted: bool | None = None
    judged: str | None = None
    reasons: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    problem: str | None = None

    @property
    def pairs(self) -> int | None:
        """Number of pairs that it was trained on."""
        pairs = self.record.data.get("pairs") if self.record else None
        return pairs if isinstance(pairs, int) else None


class Verdict(BaseModel):
    """The verdict in a version's report. judged: by which data, in words; reasons: why it was not accepted.

    metrics: those that are finite numbers.
    """

    model_config = ConfigDict(frozen=True)

    accepted: bool
    judged: str | None = None
    reasons: list[str] = []
    metrics: dict[str, float] = {}

    @field_validator("metrics", mode="before")
    @classmethod
    def _finite(cls, metrics: Any) -> Any:
        """Drop infinities, which JSON does not have, and values that are no numbers."""
        if not isinstance(metrics, dict):
            return metrics
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        return {name: value for name, value in numbers.items() if math.isfinite(value)}


def verdict_of(folder: Path) -> Verdict | None:
    """The verdict on a version or a candidate; None without a report. Raises OSError, ValidationError."""
    try:
        return Verdict.model_validate_json((folder / REPORT).read_bytes())
    except FileNotFoundError:
        return None


def history(checkpoints: Path, model: str) -> list[Version]:
    """All versions of a model, newest first and `base` last. Raises OSError where their folder cannot be read."""
    live, previous = live_version(checkpoints, model), previous_version(checkpoints, model)
    found: list[tuple[datetime, Version]] = []
    for name in versions(checkpoints, model):
        if name != BASE:
            version = _read(checkpoints / model / name, live=name == live, previous=name == previous)
            found += [version] if version else []
    newest_first = sorted(found, key=lambda dated: (dated[0], dated[1].name), reverse=True)
    base = Version(BASE, live=live == BASE, previous=previous == BASE)
    return [*(version for _, version in newest_first), base]


def _read(folder: Path, *, live: bool, previous: bool) -> tuple[datetime, Version] | None:
    """A version, after the time when it was made; None where it has been removed meanwhile."""
    record, record_fault = _try(RECORD, lambda: record_of(folder))
    verdict, verdict_fault = _try(REPORT, lambda: verdict_of(folder))
    if record is None and record_fault is None:
        record_fault = f"it has no {RECORD}"
    try:
        made, size_bytes = made_at(folder), sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
    except FileNotFoundError:
        return None
    problem = "; ".join(filter(None, (record_fault, verdict_fault))) or None
    return made, Version(
        folder.name, live, previous, made, size_bytes, record, problem=problem, **(dict(verdict) if verdict else {})
    )


def _try(file: str, read: Callable[[], _T]) -> tuple[_T | None, str | None]:
    """The content of a file, or why it cannot be read."""
    try:
        return read(), None
    except ValidationError as error:
        return None, f"{file} is damaged: {fault_text(error)}"
    except OSError as error:
        return None, f"{file} cannot be read: {error.strerror}"
