"""The catalogue of models: the schema of an entry, the entries that ship in catalogue.toml, and the user's own."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from .errors import BadEntry, UnknownModel, fault_text

Kind = Literal["embedding", "generation"]
Form = Literal["embedding", "prompt", "messages", "fim"]
"""What a request asks for: vectors; the continuation of a prompt, the answer in a chat, text to fill in the middle."""
FORMS: tuple[Form, ...] = get_args(Form)
Use = Literal["code", "general", "production", "dev"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
Quantization = Literal["int8", "int4"]
GraphDtype = Literal["fp32", "fp16"]
RepositoryLayout = Literal["plain", "qwen", "starcoder", "starcoder2"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{64}$", to_lower=True)]

_REPOSITORY = re.compile(r"(?!.*(--|\.\.|\.git$))\w([\w.-]{0,94}\w)?/\w([\w.-]{0,94}\w)?", re.ASCII)
"""The Hub's rules for a name; where they are broken its library raises, which would break every listing of models."""

OF_EMBEDDINGS = {
    "dimensions",
    "matryoshka",
    "normalize",
    "min_cosine",
    "pooling",
    "causal",
    "append_eos",
    "padding_side",
    "tasks",
    "default_task",
    "prompts",
    "default_prompt",
    "onnx_files",
}
OF_GENERATION = {"gguf", "forms", "sampling", "kv_gb", "repository_layout"}
_USES: Mapping[Kind, tuple[Use, ...]] = {"embedding": ("code", "general"), "generation": ("production", "dev")}


class SamplingDefaults(BaseModel):
    """Defaults for the sampling of tokens; None: the model states none."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_k: NonNegativeInt | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)


class ModelSpec(BaseModel):
    """One catalogue entry: what a model is, and where its weights come from. None: see the model's folder.

    Weights come from the first of `folder`, `package` and `repository`. None means: as the model's folder says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    """How requests name the model."""
    kind: Kind
    """What it does."""
    served_by: Literal["torch", "onnx"] = "torch"
    """What runs it."""
    default: bool = False
    """Whether it serves requests that name no model, unless the setting `models` names another."""
    recommended_for: Use | None = None
    """The use for which `ml.models.recommended` names it."""

    folder: Path | None = None
    """A folder with the weights."""
    package: str | None = None
    """A Python package that contains them."""
    gguf: str | None = Field(default=None, pattern=r"^\w[\w.-]*\.gguf$")
    """A file of the folder or package that is converted before it is read."""
    repository: str | None = None
    """OWNER/NAME on the Hugging Face Hub."""
    revision: str | None = Field(default=None, pattern=r"^\w[\w.@+-]*(/\w[\w.@+-]*)*$")
    """Commit, tag or branch of the repository."""
    allow_patterns: tuple[str, ...] = ()
    """Which files of the repository are downloaded; empty: those that are needed."""
    sha256: dict[str, Sha256] = Field(default_factory=dict)
    """The digests that files must have, by their path in the folder."""

    dimensions: int | None = Field(default=None, ge=1)
    """Values of a vector."""
    max_tokens: int | None = Field(default=None, ge=1)
    """The longest text to embed; or prompt and completion together."""
    matryoshka: tuple[PositiveInt, ...] = ()
    """Lengths that vectors may be cut to; empty: any."""
    normalize: bool = True
    """Whether vectors are scaled to length 1 where a request does not say."""

    dtype: Dtype = "auto"
    """What it is computed in; `auto`: bf16 where the device supports it and the self-test passes, else fp32."""
    quantization: Quantization | None = None
    """How its weights are stored; absent: as in the folder."""
    min_cosine: float = Field(default=0.999, ge=-1, le=1)
    """The lowest cosine to the fp32 vectors at which bf16, fp16 or quantised weights are served."""
    pooling: str | None = None
    """How the vectors of tokens become one: mean, cls, lasttoken and so on."""
    causal: bool | None = None
    """Whether a token attends only to those before it; sets the transformer's `is_causal`."""
    append_eos: bool | None = None
    """Whether the tokeniser's end-of-sequence token closes each text."""
    padding_side: Literal["left", "right"] | None = None
    """Where short texts of a batch are padded."""

    tasks: dict[str, NonNegativeInt] = Field(default_factory=dict)
    """Task names, and the `task_id` that a model with adapters takes for each."""
    default_task: str | None = None
    """The task of requests that name none."""
    prompts: dict[str, str] = Field(default_factory=dict)
    """Named prompts; they add to, and win over, those of the model's folder. One with a task's name goes with it."""
    default_prompt: str | None = None
    """The prompt of requests that name none."""
    onnx_files: dict[GraphDtype, str] = Field(default={"fp32": "onnx/model.onnx"}, min_length=1)
    """The graph for each dtype, by its path in the folder."""

    forms: tuple[Literal["prompt", "messages", "fim"], ...] = ()
    """Which requests a generation model supports; empty: not known before it is loaded, and assumed to be all."""
    sampling: SamplingDefaults = SamplingDefaults()
    """`temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty` where a request does not say; wins over the
    folder's generation_config.json."""
    repository_layout: RepositoryLayout | None = None
    """How files of a repository are put before a gap to fill in; absent: as the tokeniser's special tokens say."""
    kv_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Gigabytes for the KV cache of a generation model; absent: as `generation.kv_gb` says."""

    licence: str | None = None
    """Its licence."""
    commercial: bool | None = None
    """Whether the licence allows commercial use."""
    size_gb: float | None = Field(default=None, gt=0)
    """Gigabytes to download."""

    @property
    def has_source(self) -> bool:
        """Whether the entry states where its weights come from."""
        return any(source is not None for source in (self.folder, self.package, self.repository))

    def takes(self, form: Form) -> bool:
        """Whether the model serves requests of this form, as far as is known before it is loaded."""
        if self.kind == "embedding" or form == "embedding":
            return self.kind == form
        return not self.forms or form in self.forms

    def graph(self, *wanted: str | None) -> GraphDtype:
        """The ONNX graph to use, by its dtype: the first wanted one that there is, else that of the entry's own dtype,
        else the first of the entry."""
        graphs = (dtype for each in (*wanted, self.dtype) for dtype in self.onnx_files if dtype == each)
        return next(graphs, next(iter(self.onnx_files)))

    @field_validator("repository")
    @classmethod
    def _named_as_the_hub_does(cls, repository: str | None) -> str | None:
        if repository is not None and not _REPOSITORY.fullmatch(repository):
            raise ValueError(f"{repository!r} is not OWNER/NAME of a repository on the Hub")
        return repository

    @model_validator(mode="after")
    def _consistent(self) -> "ModelSpec":
        if self.default_task is not None and self.default_task not in self.tasks:
            raise ValueError(f"default_task {self.default_task!r} is none of its tasks: {', '.join(self.tasks) or '-'}")
        if self.dimensions is not None and max(self.matryoshka, default=0) > self.dimensions:
            raise ValueError(f"matryoshka has {max(self.matryoshka)}, and vectors have {self.dimensions} dimensions")
        if self.served_by == "onnx" and self.quantization is not None:
            raise ValueError("quantization is for torch models; give the ONNX graph in the precision wanted")
        if self.recommended_for is not None and self.recommended_for not in _USES[self.kind]:
            raise ValueError(f"recommended_for is one of {', '.join(_USES[self.kind])} for a model of kind {self.kind}")
        if self.kind == "generation" and self.served_by == "onnx":
            raise ValueError("served_by: text is generated by torch models only")
        other, fields = ("embedding", OF_EMBEDDINGS) if self.kind == "generation" else ("generation", OF_GENERATION)
        bare = type(self).model_construct(id=self.id, kind=self.kind)
        if foreign := sorted(name for name in fields if getattr(self, name) != getattr(bare, name)):
            raise ValueError(f"{foreign[0]} is for {other} models; take it out")
        return self


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

    def default(self, form: Form, without: str = "") -> ModelSpec | None:
        """The model for requests of this form that name none: the last entry marked as default that takes it, so that a
        user's own wins. without: the id of one that is not available."""
        candidates = [spec for spec in self if spec.default and spec.takes(form) and spec.id != without]
        return candidates[-1] if candidates else None

    def defaults(self, named: Sequence[str] = ()) -> dict[Form, str]:
        """For each form of request the id of the model for requests that name none: the first of `named` that takes the
        form, else the default. A form that no model takes is left out. Raises UnknownModel."""
        specs = [self.get(model) for model in named]
        found = {form: next((spec for spec in specs if spec.takes(form)), self.default(form)) for form in FORMS}
        return {form: spec.id for form, spec in found.items() if spec}

    def usual(self) -> list[str]:
        """The models that a worker loads by default: those for vectors and for prompts."""
        defaults = self.defaults()
        return [defaults[form] for form in FORMS[:2] if form in defaults]


def load_catalogue(extra: Mapping[str, Mapping[str, Any]] | None = None) -> Catalogue:
    """The shipped entries, then `extra` ones (id -> fields).

    An extra entry with a source of weights is complete; one without changes the shipped one of its id. Raises BadEntry
    if one does not fit the schema or has no source of weights.
    """
    shipped = tomllib.loads(resources.files(__package__).joinpath("catalogue.toml").read_text("utf-8"))
    fields = {**shipped, **{model: _over(shipped.get(model), own) for model, own in (extra or {}).items()}}
    specs = {model: _parse(model, given) for model, given in fields.items()}
    for model in extra or {}:
        if not specs[model].has_source:
            raise BadEntry(model, "needs one of folder, repository and package")
    return Catalogue(specs)


def shipped_config(spec: ModelSpec) -> dict[str, Any]:
    """The configuration that ships with mlbus for the entry's repository; empty if there is none."""
    shipped = resources.files(__package__).joinpath("configs", f"{spec.id}.json")
    config: dict[str, Any] = json.loads(shipped.read_text("utf-8")) if shipped.is_file() else {}
    return config if config.get("_name_or_path") == spec.repository else {}


def _over(shipped: Mapping[str, Any] | None, own: Mapping[str, Any]) -> Mapping[str, Any]:
    names_source = any(field in own for field in ("folder", "package", "repository"))
    return own if shipped is None or names_source else {**shipped, **own}


def _parse(model: str, fields: Mapping[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.model_validate({**fields, "id": model})
    except ValidationError as error:
        raise BadEntry(model, fault_text(error)) from error
