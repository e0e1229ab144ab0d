"""The settings of fine-tuning, `finetune.*` in settings.py."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from models.training.run import VerifyLimits


class Section(BaseModel):
    """A table of the settings file."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NightlySettings(Section):
    """The training that begins by itself; without paths there is none."""

    cron: str = Field("0 2 * * *", description="when, as five cron fields")
    timezone: str | None = Field(
        None, description="time zone of the cron fields, such as Europe/Berlin; absent: the machine's"
    )
    misfire_grace_s: int = Field(3600, ge=1, description="seconds by which a busy or sleeping worker may start late")
    paths: tuple[Path, ...] = Field(
        (), description="codebases, each below one of finetune.roots; none: no nightly training"
    )
    models: tuple[str, ...] = Field((), description="models that are trained on them; absent: the default one")
    promote: bool = Field(True, description="promote versions that pass; otherwise they stay candidates")
    options: dict[str, Any] = Field(default_factory=dict, description="options of ml.finetune")


class FinetuneSettings(Section):
    """How models are trained further, beside those that serve."""

    enabled: bool = Field(True, description="take jobs; a worker that does not still swaps to new versions")
    roots: tuple[Path, ...] = Field((Path(),), description="folders below which codebases may be trained on")
    attempts: int = Field(3, ge=1, le=100, description="how often a job is started before it fails")
    threads: int | None = Field(None, ge=1, le=1024, description="compute threads; absent: as many as for serving")
    memory_gb: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="gigabytes that a training may take; absent: what is free"
    )
    judge: Path | None = Field(
        None,
        description="pairs (a file of JSON lines) or code (a folder below roots) that training on a caller's pairs "
        "must not make worse",
    )
    candidates: int = Field(
        5,
        ge=1,
        description="versions of a model that never served and are kept: this many accepted and this many rejected "
        "ones",
    )
    keep_versions: int = Field(
        5, ge=0, description="versions of a model that serve or have served, and files of training data, that are kept"
    )
    keep_days: int = Field(30, ge=0, description="days for which versions beyond keep_versions are kept")
    limits: VerifyLimits = VerifyLimits()
    nightly: NightlySettings = NightlySettings()
