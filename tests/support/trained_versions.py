"""Fine-tuned versions for the tests: folders as a training and its verification leave them, with tiny weights."""

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from models.weights.version_history import REPORT
from models.weights.versions import (
    BASE,
    RECORD,
    TrainingRecord,
    live_version,
    make_live,
    previous_version,
    version_name,
)

FIRST_DAY = datetime(2026, 1, 1, 2, tzinfo=UTC)


def trained(folder: Path, text: str = "weights", parent: str = BASE, day: int = 0, **report: Any) -> str:
    """Write a candidate whose weights are `text`, made so many days after the first -> the name of its version."""
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text(text)
    (folder / "model.safetensors").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    record = TrainingRecord(
        model="mine",
        job=f"job-{day}",
        parent=parent,
        created_at=FIRST_DAY + timedelta(days=day),
        weights_sha256=digest,
        options={"epochs": 1},
        data={"pairs": 4950},
        metrics={},
    )
    (folder / RECORD).write_text(record.model_dump_json())
    if report:
        (folder / REPORT).parent.mkdir()
        (folder / REPORT).write_text(json.dumps(report))
    return version_name(record.created_at, digest)


def serve(checkpoints: Path, model: str, version: str) -> None:
    """Make a version the live one, after the one that was; nothing changes where it is live already."""
    live = live_version(checkpoints, model)
    make_live(checkpoints, model, version, previous_version(checkpoints, model) if live == version else live)


def is_whole(folder: Path) -> bool:
    """Whether everything that `trained` writes is there, and of one version."""
    text = (folder / "model.safetensors").read_text()
    record = TrainingRecord.model_validate_json((folder / RECORD).read_bytes())
    same = (folder / "1_Pooling" / "config.json").read_text() == text
    return same and record.weights_sha256 == hashlib.sha256(text.encode()).hexdigest()
