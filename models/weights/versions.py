"""Versions of a model's weights: its entry's own, and the fine-tuned ones below the data directory.

Owns names and paths, `checkpoints/<model>/<version>/`, and which version is live. Two links beside the versions say it:
`checkpoint-latest` points to the live one; without it that is the entry's own, `base`. `checkpoint-previous` points to
the one that was live before, or to the name `base`, where no folder is. Knows nothing of what the weights are.
"""

import errno
import re
import shutil
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict

from ..errors import UnknownVersion
from .durable import clear_leftovers, discard, point, publish_folder, temporary_name

BASE = "base"
LATEST = "checkpoint-latest"
PREVIOUS = "checkpoint-previous"
RECORD = "training_config.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class TrainingRecord(BaseModel):
    """`training_config.json` of a version: how it came to be. weights_sha256: as `weights.check_weights` gives it.

    data: the manifest of the pairs; metrics: of the training itself, the verdict is in `report/report.json`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    job: str
    parent: str
    created_at: AwareDatetime
    weights_sha256: str
    options: dict[str, Any]
    data: dict[str, Any]
    metrics: dict[str, float]


def version_name(created_at: datetime, weights_sha256: str) -> str:
    """The name of a version: when it was made (UTC), and what `version` in replies begins with."""
    return f"{created_at.astimezone(UTC):%Y%m%d-%H%M%S}-{weights_sha256[:12]}"


def record_of(folder: Path) -> TrainingRecord | None:
    """How the weights in a folder came to be; None where it does not say. Raises OSError, ValueError."""
    try:
        return TrainingRecord.model_validate_json((folder / RECORD).read_bytes())
    except FileNotFoundError:
        return None


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
    if not _may_be(version) or not folder.is_dir():
        raise UnknownVersion(model, version, versions(checkpoints, model))
    return folder.resolve()


def versions(checkpoints: Path, model: str) -> tuple[str, ...]:
    """The names of all versions of a model, `base` first."""
    folder = checkpoints / model
    found = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return (BASE, *sorted(filter(_may_be, found)))


def live_version(checkpoints: Path, model: str) -> str:
    """The name of the version that is served; `base` where there is no link, or the link leads nowhere."""
    return _target(checkpoints / model / LATEST) or BASE


def previous_version(checkpoints: Path, model: str) -> str | None:
    """The name of the version to go back to, which may be `base`.

    None where no other was live before, or where that one is gone.
    """
    name = _target(checkpoints / model / PREVIOUS)
    return None if name == live_version(checkpoints, model) else name


def make_live(checkpoints: Path, model: str, version: str, previous: str | None) -> None:
    """Let a version be the live one, and another one, which need not be here, the previous one; None: no other was.

    The link to the previous one moves first: killed in between, the live version is still the old one.
    Raises UnknownVersion, OSError.
    """
    version_folder(checkpoints, model, version)
    _link(checkpoints / model / PREVIOUS, previous)
    _link(checkpoints / model / LATEST, None if version == BASE else version)


def keep(candidate: Path, checkpoints: Path, model: str, version: str) -> Path:
    """Move a complete folder of weights in as a version, from another file system too -> where it lies now.

    Where the version is there already with the same weights, only the candidate goes; so it can be done again.
    Raises FileExistsError where it is there with other weights, UnknownVersion for a name that none can have, OSError.
    """
    if not _may_be(version):
        raise UnknownVersion(model, version, versions(checkpoints, model))
    final = checkpoints / model / version
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.is_dir() and (not candidate.exists() or _same_weights(candidate, final)):
        discard(candidate)
        return final
    try:
        publish_folder(candidate, final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(candidate, final)
        discard(candidate)
    return final


def prune(
    checkpoints: Path, model: str, among: Collection[str], keep: int, older_than: datetime | None = None
) -> list[str]:
    """Remove those among some versions that are not the `keep` newest of them -> their names.

    Never the live one nor the previous one, nor a folder without a record, which no training made. older_than: with a
    time zone; what was made after it stays. Raises OSError.
    """
    folder = checkpoints / model
    clear_leftovers(folder)
    trained = [name for name in versions(checkpoints, model) if name in among and (folder / name / RECORD).is_file()]
    made = {name: made_at(folder / name) for name in trained}
    newest_first = sorted(made, key=lambda name: (made[name], name), reverse=True)
    removed = []
    for name in newest_first[keep:]:
        in_use = (live_version(checkpoints, model), previous_version(checkpoints, model))
        if (older_than is None or made[name] < older_than) and name not in in_use:
            discard(folder / name)
            removed.append(name)
    return removed


def made_at(folder: Path) -> datetime:
    """When a version was made, as it says itself; else when its folder was last changed. Raises OSError."""
    try:
        record = record_of(folder)
    except (OSError, ValueError):
        record = None
    return record.created_at if record else datetime.fromtimestamp(folder.stat().st_mtime, UTC)


def _may_be(name: str) -> bool:
    """Whether a folder of this name can be a version."""
    return name not in (BASE, LATEST, PREVIOUS) and _NAME.fullmatch(name) is not None


def _link(link: Path, target: str | None) -> None:
    if target is None:
        discard(link)
    elif not link.is_symlink() or link.readlink().name != target:
        link.parent.mkdir(parents=True, exist_ok=True)
        point(link, target)


def _target(link: Path) -> str | None:
    """The name that a link leads to; None where nothing is there. A folder in a link's place stands for itself."""
    try:
        name = link.readlink().name
    except OSError:
        name = link.name
    return name if name == BASE or link.is_dir() else None


def _same_weights(one: Path, other: Path) -> bool:
    try:
        records = [record_of(one), record_of(other)]
    except (OSError, ValueError):
        return False
    digests = [record.weights_sha256 for record in records if record]
    return len(digests) == 2 and len(set(digests)) == 1


def _copy(source: Path, final: Path) -> None:
    temporary = temporary_name(final)
    try:
        shutil.copytree(source, temporary)
        publish_folder(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
