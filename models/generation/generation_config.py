"""generation_config.json: what a model's authors say of sampling, and which tokens end a text. Knows no model."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, model_validator

from ..catalogue import ModelSpec, SamplingDefaults
from ..errors import ModelUnavailable
from .base import Defaults

FILE = "generation_config.json"
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


class GenerationConfig(SamplingDefaults):
    """What is read of the file; the rest of it says how transformers' own `generate` works."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, allow_inf_nan=False)

    do_sample: bool | None = None
    eos_token_id: int | Annotated[list[int], Field(max_length=1000)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _used(cls, stated: Any) -> Any:
        """Without what transformers itself does not read either, where the authors do not sample."""
        if not isinstance(stated, dict) or stated.get("do_sample"):
            return stated
        return {name: value for name, value in stated.items() if name not in _SAMPLING}

    @property
    def defaults(self) -> Defaults:
        """How the authors choose tokens; of sampling, nothing where they do not."""
        return Defaults(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty)

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text."""
        return token_ids(self.eos_token_id)


def token_ids(stated: int | list[int] | None) -> frozenset[int]:
    """Of a field that says none, one or several."""
    return frozenset(stated if isinstance(stated, list) else [] if stated is None else [stated])


def read_generation_config(spec: ModelSpec, folder: Path) -> GenerationConfig:
    """That of a folder, empty where it has none, under what the entry says. Raises ModelUnavailable where it is
    damaged."""
    try:
        stated = GenerationConfig.model_validate_json((folder / FILE).read_bytes())
    except FileNotFoundError:
        stated = GenerationConfig()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"][:1])
        fault = f"{where}: {first['msg']}" if where else first["msg"]
        raise ModelUnavailable(spec.id, f"{FILE} in {folder} cannot be used, {fault}; correct it") from error
    return stated.model_copy(update=spec.sampling.model_dump(exclude_none=True))
