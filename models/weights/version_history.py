"""What became of a model: all its versions, how each came to be, and what its verification said.

Reads what lies in the versions' folders. What cannot be read is told beside what can.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from .versions import BASE, RECORD, TrainingRecord, live_version, made_at, previous_version, record_of, versions

REPORT = "report/report.json"
OWN_DATA = "by its own data only"
"""What judged a version that was trained on a caller's pairs, where the operator has none: the caller's as well."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a model. Of `base`, the entry's own weights, only the name and the marks are known.

    made_at: its record's time, else its folder's. size_bytes: of all its files. accepted, judged, reasons, metrics: as
    in a Verdict, nothing without one. problem: what of it cannot be read.
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
        """How many pairs it was trained on."""
        pairs = self.record.data.get("pairs") if self.record else None
        return pairs if isinstance(pairs, int) else None


class Verdict(BaseModel):
    """What a version's report says of it. reasons: why it was not accepted; metrics: those that are finite numbers.

    judged: by what, in words.
    """

    model_config = ConfigDict(frozen=True)

    accepted: bool
    judged: str | None = None
    reasons: list[str] = []
    metrics: dict[str, float] = {}

    @field_validator("metrics", mode="before")
    @classmethod
    def _finite(cls, metrics: Any) -> Any:
        """JSON has no infinity, and what is no number cannot be compared."""
        if not isinstance(metrics, dict):
            return metrics
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        return {name: value for name, value in numbers.items() if math.isfinite(value)}


def verdict_of(folder: Path) -> Verdict | None:
    """Of a version or a candidate; None where it has no report. Raises OSError, ValidationError."""
    try:
        return Verdict.model_validate_json((folder / REPORT).read_bytes())
    except FileNotFoundError:
        return None


def history(checkpoints: Path, model: str) -> list[Version]:
    """All versions of a model, newest first, `base` last. Raises OSError where their folder cannot be read."""
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
    """A version and when it was made; None where it was removed meanwhile."""
    record, no_record = _try(RECORD, lambda: record_of(folder))
    verdict, no_verdict = _try(REPORT, lambda: verdict_of(folder))
    if record is None and no_record is None:
        no_record = f"it has no {RECORD}"
    try:
        made, size_bytes = made_at(folder), sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
    except FileNotFoundError:
        return None
    return made, Version(
        folder.name,
        live=live,
        previous=previous,
        made_at=made,
        size_bytes=size_bytes,
        record=record,
        accepted=verdict.accepted if verdict else None,
        judged=verdict.judged if verdict else None,
        reasons=verdict.reasons if verdict else [],
        metrics=verdict.metrics if verdict else {},
        problem="; ".join(filter(None, (no_record, no_verdict))) or None,
    )


def _try(file: str, read: Callable[[], _T]) -> tuple[_T | None, str | None]:
    """What a file says, or why it says nothing."""
    try:
        return read(), None
    except ValidationError as error:
        fault = error.errors()[0]
        return None, f"{file} is damaged: {'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}"
    except OSError as error:
        return None, f"{file} cannot be read: {error.strerror}"
