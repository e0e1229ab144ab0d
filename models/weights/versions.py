"""Versions of a model's weights: the entry's own, `base`, and fine-tuned ones in `checkpoints/<model>/<version>/`.

Two links beside the versions mark them: `checkpoint-latest` points to the live one, and is missing if that is `base`;
`checkpoint-previous` points to the version that was live before, or to the name `base`, where no folder is.
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
from .durable import clear_leftovers, discard, new_folder, point, publish_folder

BASE = "base"
LATEST = "checkpoint-latest"
PREVIOUS = "checkpoint-previous"
RECORD = "training_config.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class TrainingRecord(BaseModel):
    """`training_config.json` of a version: how it was trained. weights_sha256: as check_weights returns it.

    data: the manifest of the pairs. metrics: of the training itself; the verdict is in `report/report.json`.
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
    """The name of a version: the time when it was made (UTC), and the start of `version` in replies."""
    return f"{created_at.astimezone(UTC):%Y%m%d-%H%M%S}-{weights_sha256[:12]}"


def record_of(folder: Path) -> TrainingRecord | None:
    """The training record of the weights in a folder, if there is one. Raises OSError, ValueError."""
    try:
        return TrainingRecord.model_validate_json((folder / RECORD).read_bytes())
    except FileNotFoundError:
        return None


def version_folder(checkpoints: Path, model: str, version: str | None = None) -> Path | None:
    """The folder of a version, None for `base`, whose weights are at the entry's source. Raises UnknownVersion.

    version: None for the live one.
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
    """The name of the live version; `base` where the link is missing or leads nowhere."""
    return _target(checkpoints / model / LATEST) or BASE


def previous_version(checkpoints: Path, model: str) -> str | None:
    """The name of the version that was live before, which may be `base`; None if there was none, or it is gone."""
    name = _target(checkpoints / model / PREVIOUS)
    return None if name == live_version(checkpoints, model) else name


def make_live(checkpoints: Path, model: str, version: str, previous: str | None) -> None:
    """Mark a version as live, and another, which need not be here, as the previous one; None: there was none.

    The link to the previous one moves first: if the process is killed in between, the old version is still live.
    Raises UnknownVersion, OSError.
    """
    version_folder(checkpoints, model, version)
    _link(checkpoints / model / PREVIOUS, previous)
    _link(checkpoints / model / LATEST, None if version == BASE else version)


def keep(candidate: Path, checkpoints: Path, model: str, version: str) -> Path:
    """Move a complete folder of weights, even from another file system, to its place as a version -> that folder.

    Can be repeated: where the version is there with the same weights, the candidate is only removed. Raises
    FileExistsError where it is there with other weights, UnknownVersion for a name that no version can have, OSError.
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
        with new_folder(final) as temporary:
            shutil.copytree(candidate, temporary, dirs_exist_ok=True)
        discard(candidate)
    return final


def prune(
    checkpoints: Path, model: str, among: Collection[str], keep: int, older_than: datetime | None = None
) -> list[str]:
    """Remove versions from a selection, except the `keep` newest of them -> the names of those removed.

    The live and the previous version stay, and folders without a training record. older_than: with a time zone; later
    versions stay. Raises OSError.
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
    """The time when a version was made by its record, else when its folder was last changed. Raises OSError."""
    try:
        record = record_of(folder)
    except (OSError, ValueError):
        record = None
    return record.created_at if record else datetime.fromtimestamp(folder.stat().st_mtime, UTC)


def _may_be(name: str) -> bool:
    """Whether a version can have this name."""
    return name not in (BASE, LATEST, PREVIOUS) and _NAME.fullmatch(name) is not None


def _link(link: Path, target: str | None) -> None:
    if target is None:
        discard(link)
    elif not link.is_symlink() or link.readlink().name != target:
        link.parent.mkdir(parents=True, exist_ok=True)
        point(link, target)


def _target(link: Path) -> str | None:
    """The name that a link points to; None where nothing is there. A folder in place of the link is its own target."""
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
