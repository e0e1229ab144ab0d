"""Versions of a model's weights: its entry's own, and the fine-tuned ones below the data directory.

Owns names and paths, `checkpoints/<model>/<version>/`. Knows nothing of what lies in a version's folder.
"""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from .errors import UnknownVersion

BASE = "base"
LATEST = "checkpoint-latest"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def version_folder(checkpoints: Path, model: str, version: str | None = None) -> Path | None:
    """Where the weights of a version lie; None: at the source that the entry names.

    Without a version it is the live one: `checkpoint-latest` where there is one, else the entry's own, `base`.
    Raises UnknownVersion.
    """
    if version is None:
        live = checkpoints / model / LATEST
        return live.resolve() if live.is_dir() else None
    if version == BASE:
        return None
    folder = checkpoints / model / version
    if not _NAME.fullmatch(version) or not folder.is_dir():
        raise UnknownVersion(model, version, versions(checkpoints, model))
    return folder.resolve()


def versions(checkpoints: Path, model: str) -> tuple[str, ...]:
    """The names of all versions of a model, `base` first."""
    folder = checkpoints / model
    found = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return (BASE, *sorted(name for name in found if name != LATEST and _NAME.fullmatch(name)))


class TrainingRecord(BaseModel):
    """`training_config.json` of a version: how it came to be. weights_sha256: as `weights.check_weights` gives it.

    data: the manifest of the pairs; metrics: of the training itself, the verdict is in `report/report.json`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    job: str
    parent: str
    created_at: datetime
    weights_sha256: str
    options: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, float]


def version_name(created_at: datetime, weights_sha256: str) -> str:
    """The name of a version: when it was made (UTC), and what `version` in replies begins with."""
    return f"{created_at.astimezone(UTC):%Y%m%d-%H%M%S}-{weights_sha256[:12]}"
