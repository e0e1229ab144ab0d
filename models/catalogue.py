"""The catalogue: which models there are, and what is known of each.

Owns the schema of an entry, the entries that ship in catalogue.toml and the user's own beside them.
Does not know where weights lie (hub.py) or how they are read (loader.py).
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import BadEntry, UnknownModel

Dtype = Literal["auto", "fp32", "bf16"]


class ModelSpec(BaseModel):
    """One catalogue entry: what a model is, and where its weights come from.

    Weights come from the first of `folder`, `package` (an installed Python package with a `model` folder) and
    `repository` (on the Hugging Face Hub, at `revision`). `sha256` pins files by their path in the folder.
    `prompts` add to, and win over, those that the model's own folder names. None means: not known here, ask the
    model's folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    kind: Literal["embedding", "generation"]
    served_by: Literal["torch", "onnx"] = "torch"
    default: bool = False
    recommended_for: Literal["production", "dev"] | None = None

    folder: Path | None = None
    package: str | None = None
    repository: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    revision: str | None = None
    sha256: dict[str, str] = Field(default_factory=dict)

    dimensions: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    dtype: Dtype = "auto"
    pooling: str | None = None
    causal: bool | None = None
    append_eos: bool | None = None
    prompts: dict[str, str] = Field(default_factory=dict)
    default_prompt: str | None = None

    licence: str | None = None
    commercial: bool | None = None
    size_gb: float | None = Field(default=None, gt=0)

    @property
    def unserved(self) -> str | None:
        """Why this version cannot serve the model, as a clause; None where it can."""
        if self.kind == "generation":
            return "text generation is not part of it"
        if self.served_by == "onnx":
            return "it needs the ONNX encoder, which is not part of it"
        if self.causal is not None or self.append_eos is not None:
            return "the attention mask and end token that it needs are not applied"
        return None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All entries by id, in the order in which they were written."""

    specs: Mapping[str, ModelSpec]

    def get(self, model: str) -> ModelSpec:
        """The entry of this id. Raises UnknownModel."""
        if model not in self.specs:
            raise UnknownModel(model, tuple(self.specs))
        return self.specs[model]

    def __iter__(self) -> Iterator[ModelSpec]:
        return iter(self.specs.values())

    def __len__(self) -> int:
        return len(self.specs)

    def default(self, kind: Literal["embedding", "generation"]) -> ModelSpec:
        """The model served when a request names none: the last entry marked as default, so a user's own wins."""
        return [spec for spec in self if spec.kind == kind and spec.default][-1]


def load_catalogue(extra: Mapping[str, Mapping[str, Any]] | None = None) -> Catalogue:
    """The shipped entries, then `extra` ones (id -> fields); an extra entry replaces a shipped one of its id.

    Raises BadEntry if an extra entry does not fit the schema or names no source of weights.
    """
    shipped = tomllib.loads(resources.files(__package__).joinpath("catalogue.toml").read_text("utf-8"))
    specs = {model: _parse(model, fields) for model, fields in shipped.items()}
    for model, fields in (extra or {}).items():
        specs[model] = _parse_extra(model, fields)
    return Catalogue(specs)


def _parse_extra(model: str, fields: Mapping[str, Any]) -> ModelSpec:
    spec = _parse(model, fields)
    if spec.folder is None and spec.package is None and spec.repository is None:
        raise BadEntry(model, "needs one of folder, repository and package")
    return spec


def _parse(model: str, fields: Mapping[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.model_validate({**fields, "id": model})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadEntry(model, f"{where}: {first['msg']}") from error
