"""Settings: flags over MLBUS_* variables over one TOML file over the defaults below. Read once, validated, handed down.

The NATS server and the credentials for it come from the environment of the nats command (bus/settings.py).
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from ..endpoint.reply_subject import PREFIXES, checked_prefixes
from .finetuning import FinetuneSettings
from .gateway import HttpSettings
from .serving import BatchSettings, GenerationSettings, LimitSettings, MemorySettings

CONFIG_FILE = "mlbus.toml"
_OF_THE_SERVER = re.compile(r"MLBUS_([A-Z][A-Z0-9_]*_PASSWORD|TLS_(CERT|KEY|CA))")
"""Variables that nats-server.conf names."""


class BadSettings(Exception):
    """A setting that cannot be used; the message names it and its source."""


class Settings(BaseSettings):
    """Everything that can be set. An absent value is chosen at start and logged."""

    model_config = SettingsConfigDict(
        env_prefix="MLBUS_", env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=False
    )

    nats_url: str | None = Field(
        None,
        description="NATS servers, separated by commas; absent: NATS_URL, the nats command's context, "
        "nats://127.0.0.1:4222",
    )
    embedded_nats: bool = Field(
        False,
        description="start a nats-server. The flag wins over NATS_URL and nats_url; as a variable or in the file it "
        "gives way to them",
    )
    nats_port: int = Field(4222, ge=0, le=65535, description="port of the embedded server; 0: any free one")
    monitor: bool = Field(
        False,
        description="HTTP monitoring of the embedded server on loopback; it needs no password and shows who "
        "subscribes where",
    )
    nats_monitor_port: int = Field(8222, ge=0, le=65535, description="port of that monitoring; 0: any free one")
    nats_config: Path | None = Field(
        None, description="configuration file of the embedded server; absent: nats-server.conf of mlbus"
    )
    data_dir: Path = Field(Path("var"), description="folder for everything that is stored")
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("minilm", "smollm2"),
        min_length=1,
        description="models to load at start, as a variable separated by commas. The first that supports a request "
        "serves it where it names no model, else minilm, smollm2 or tiny_coder. Other models are loaded "
        "on demand",
    )
    strict: bool = Field(
        False,
        description="do not start if one of models or memory.pinned cannot be loaded; otherwise start with the rest "
        "and retry",
    )
    device: Literal["auto", "cuda", "cpu"] = Field("auto", description="auto: CUDA where a GPU is usable, else CPU")
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: as each model's entry says, for most models bf16 where the device supports it and the "
        "self-test passes",
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="compute threads; absent: all cores, less one if there are more than two"
    )
    grace_s: float = Field(
        30.0, ge=0, description="seconds from a signal to the exit; requests in flight get all but the last 5"
    )
    reply_prefixes: Annotated[tuple[str, ...], NoDecode] = Field(
        PREFIXES,
        description="prefixes of reply subjects that are answered. Add your clients' own inbox prefix, and keep "
        "_INBOX_ml, which workers use among themselves",
    )
    metrics_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address on which metrics and health checks are served over HTTP, without passwords",
    )
    metrics_port: int = Field(
        9464, ge=-1, le=65535, description="their port; 0: any free one, as also if it is taken; -1: none"
    )
    gateway: bool = Field(False, description="start an HTTP gateway too, a process of its own, on http.listen")
    log_format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal, else JSON")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe level that is logged"
    )
    limits: LimitSettings = LimitSettings()
    batch: BatchSettings = BatchSettings()
    memory: MemorySettings = MemorySettings()
    generation: GenerationSettings = GenerationSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    http: HttpSettings = HttpSettings()
    catalogue: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="models of your own, or changed fields of shipped ones: `[catalogue.<id>]`",
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
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def read_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Read the settings. flags: None for those not given. Raises BadSettings."""
    path = config or Path(os.environ.get("MLBUS_CONFIG", CONFIG_FILE))
    if not path.is_file() and (config or "MLBUS_CONFIG" in os.environ):
        raise BadSettings(f"there is no settings file {path}")
    _refuse_unknown_variables()
    given = {name: value for name, value in flags.items() if value is not None}

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=path)

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
