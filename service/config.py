"""Settings: flags over MLBUS_* variables over one TOML file over the defaults below. Read once, validated, handed down.

The NATS server and the credentials for it come from the environment of the nats command (bus/settings.py).
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from .endpoint.reply_subject import PREFIXES, checked_prefixes
from .finetune_config import FinetuneSettings, Section

CONFIG_FILE = "mlbus.toml"
_OF_THE_SERVER = re.compile(r"MLBUS_([A-Z][A-Z0-9_]*_PASSWORD|TLS_(CERT|KEY|CA))")
"""Variables that nats-server.conf names."""


class BadSettings(Exception):
    """A setting that cannot be used; the message names it and its source."""


class LimitSettings(Section):
    """What one worker holds at once; past it a request is refused with 429."""

    requests: int = Field(4096, ge=1, description="requests in flight")
    request_bytes: int = Field(64 * 2**20, ge=1024, description="bytes of the bodies in flight")
    default_timeout_s: float = Field(
        60.0, gt=0, le=900, description="deadline of a request that names none, in seconds; at most 900"
    )
    watches: int = Field(256, ge=1, description="jobs that are watched at a time, each watch a stream of its own")
    queue_texts: int = Field(8192, ge=1, description="texts of each priority that wait for one model")
    queue_tokens: int = Field(1_000_000, ge=1, description="tokens of each priority that wait for one model")


class BatchSettings(Section):
    """How texts are put together into batches."""

    budget_tokens: int | None = Field(None, ge=1, description="tokens of a batch; absent: what suits the device")
    overhead_tokens: int | None = Field(
        None, ge=0, description="padding worth one batch saved, in tokens; absent: what suits the device"
    )


class MemorySettings(Section):
    """Which models stay in memory."""

    budget_gb: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="gigabytes for models; absent: what is free, less a margin",
    )
    idle_unload_s: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="seconds after which an unused model is unloaded; absent: never",
    )
    pinned: tuple[str, ...] = Field((), description="models that are never evicted nor unloaded when idle")
    load_on_demand: bool = Field(True, description="load a model when a request asks for it, if its weights are here")
    load_timeout_s: float = Field(
        600.0, gt=0, allow_inf_nan=False, description="seconds after which a load that does not end is given up"
    )

    @model_validator(mode="after")
    def _comes_back(self) -> "MemorySettings":
        if self.idle_unload_s is not None and not self.load_on_demand:
            raise ValueError("idle_unload_s without load_on_demand would unload models for good; leave one of them out")
        return self


class GenerationSettings(Section):
    """How text is generated."""

    kv_gb: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="gigabytes for each model's keys and values; absent: an eighth of those for models",
    )
    max_running: int = Field(32, ge=1, le=4096, description="completions of one model that grow at once")
    waiting: int = Field(256, ge=1, description="completions that wait for one model")
    waiting_tokens: int = Field(262_144, ge=1, description="tokens of their prompts")
    chunk_tokens: int | None = Field(
        None, ge=1, description="tokens of prompts computed in a step; absent: what suits the device"
    )
    stuck_step_s: float = Field(
        30.0, gt=0, allow_inf_nan=False, description="seconds after which a step is reported as stuck"
    )


class Settings(BaseSettings):
    """Everything that can be set. An absent value is chosen at start and logged."""

    model_config = SettingsConfigDict(
        env_prefix="MLBUS_", env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=False
    )

    nats_url: str | None = Field(
        None, description="NATS servers; absent: NATS_URL, the nats command's context, loopback"
    )
    embedded_nats: bool = Field(
        False, description="start a nats-server of our own where nats_url and NATS_URL name none"
    )
    nats_port: int = Field(4222, ge=0, le=65535, description="port of the embedded server; 0: any free one")
    monitor: bool = Field(False, description="its monitoring over HTTP on loopback, which asks for no password")
    nats_monitor_port: int = Field(8222, ge=0, le=65535, description="the port of that; 0: any free one")
    nats_config: Path | None = Field(None, description="configuration of the embedded server; absent: nats-server.conf")
    data_dir: Path = Field(Path("var"), description="folder of everything that is kept")
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("minilm", "smollm2"),
        min_length=1,
        description="models to load at start; the first that takes a request serves it where it names none",
    )
    strict: bool = Field(False, description="do not start without one of them, nor of those pinned")
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="auto: CUDA, else CPU")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: as each model's entry says, for most bf16 where the device computes in it"
    )
    threads: int | None = Field(None, ge=1, le=1024, description="compute threads; absent: all cores but one past two")
    grace_s: float = Field(
        30.0, ge=0, description="seconds from a signal to the end; requests in flight get all but the last 5"
    )
    reply_prefixes: Annotated[tuple[str, ...], NoDecode] = Field(
        PREFIXES, description="prefixes of the subjects that are answered; a request with another one is dropped"
    )
    metrics_host: str = Field("127.0.0.1", min_length=1, description="where metrics and health are served over HTTP")
    metrics_port: int = Field(9464, ge=-1, le=65535, description="the port of both; 0: any free one; -1: none")
    log_format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal, else JSON")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    limits: LimitSettings = LimitSettings()
    batch: BatchSettings = BatchSettings()
    memory: MemorySettings = MemorySettings()
    generation: GenerationSettings = GenerationSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    catalogue: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="models of your own: [catalogue.<id>] with the fields of models/catalogue.toml",
    )

    @property
    def chosen_models(self) -> tuple[str, ...]:
        """The models that were named; empty if none were: then the catalogue's defaults are meant."""
        return self.models if "models" in self.model_fields_set else ()

    @property
    def cache_dir(self) -> Path:
        """What is cached about weights between runs."""
        return self.data_dir / "cache"

    @property
    def checkpoints_dir(self) -> Path:
        """Fine-tuned versions of models."""
        return self.data_dir / "checkpoints"

    @property
    def training_data_dir(self) -> Path:
        """Training data, a file for each job."""
        return self.data_dir / "training_data"

    @property
    def runs_dir(self) -> Path:
        """Working files of jobs that are not over."""
        return self.data_dir / "runs"

    @field_validator("models", "reply_prefixes", mode="before")
    @classmethod
    def _comma_separated(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("models")
    @classmethod
    def _each_once(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(models))

    @field_validator("reply_prefixes")
    @classmethod
    def _harmless(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        return checked_prefixes(prefixes)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings


def read_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Read the settings. flags: None for those not given. Raises BadSettings."""
    path = config or Path(os.environ.get("MLBUS_CONFIG", CONFIG_FILE))
    if not path.is_file() and (config or "MLBUS_CONFIG" in os.environ):
        raise BadSettings(f"there is no settings file {path}")
    _refuse_unknown_variables()
    given = {name: value for name, value in flags.items() if value is not None}

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *sources: Any, **named: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return *super().settings_customise_sources(settings_cls, *sources, **named), TomlConfigSettingsSource(
                settings_cls, path
            )

    try:
        return _with_one_server(FromFile(**given), given)
    except ValidationError as error:
        faults = "; ".join(map(_fault, error.errors()))
        raise BadSettings(f"settings (flags, MLBUS_* variables or {path}): {faults}") from None
    except SettingsError as error:
        raise BadSettings(f"MLBUS_* variables: {error}") from None
    except (OSError, ValueError) as error:
        raise BadSettings(f"{path} is not a TOML file of settings: {error}") from None


def _with_one_server(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """Settings with either an embedded server or the address of one.

    The flag `--embedded-nats` wins over a server that a variable or the file names; as a setting it gives way to one.
    """
    typed = bool(given.get("embedded_nats"))
    if typed and "nats_url" in given:
        raise BadSettings("--nats-url joins a NATS server and --embedded-nats starts one: leave one of them out")
    named = settings.nats_url or os.environ.get("NATS_URL")
    if settings.embedded_nats and (typed or not named):
        if "nats_monitor_port" in given and not settings.monitor:
            raise BadSettings("--nats-monitor-port is for monitoring: add --monitor")
        return settings.model_copy(update={"nats_url": None})
    for setting in ("nats_port", "monitor", "nats_monitor_port"):
        if setting in given:
            raise BadSettings(f"--{setting.replace('_', '-')} is for a server of our own: add --embedded-nats")
    return settings.model_copy(update={"embedded_nats": False})


def _fault(fault: ErrorDetails) -> str:
    name = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        return f"unknown setting {name}" + _suggestion(name, _names(Settings))
    return f"{name}: {fault['msg']}"


def _names(settings: type[BaseModel], prefix: str = "") -> list[str]:
    """The names of all settings, those in tables with dots."""
    names = []
    for name, field in settings.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _names(field.annotation, f"{name}.")
    return names


def _refuse_unknown_variables() -> None:
    known = [f"MLBUS_{name.upper().replace('.', '__')}" for name in _names(Settings)] + ["MLBUS_CONFIG"]
    for name in sorted(os.environ):
        if name.startswith("MLBUS_") and name.partition("__")[0] not in known and not _OF_THE_SERVER.fullmatch(name):
            raise BadSettings(f"unknown variable {name}{_suggestion(name, known)}")


def _suggestion(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""
