"""`ml.models.*`: which models there are, which to use, and what a worker keeps in memory."""

from datetime import datetime
from typing import Annotated

from pydantic import Field, StringConstraints

from .embed import Message, Reply, Token
from .names import Dtype, Form, Kind, Quantization, Use

Version = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class ModelsListRequest(Message):
    kind: Kind | None = Field(None, description="only models of this kind")


class ModelsInfoRequest(Message):
    model: Token


class ModelsRecommendedRequest(Message):
    use: Use | None = Field(
        None, description="code, general: embedding; production, dev: generation; absent: all of them"
    )


class ModelsLoadRequest(Message):
    model: Token
    dtype: Dtype | None = Field(
        None, description="auto: as the model's entry says; absent, like quantization: as was chosen last"
    )
    quantization: Quantization | None = Field(None, description="weight-only; absent beside a dtype: as its entry says")
    pin: bool | None = Field(None, description="true: never evict it to make room, nor unload it when idle")


class ModelsUnloadRequest(Message):
    model: Token
    force: bool = Field(False, description="although requests use it; they finish first")


class ModelsReloadRequest(Message):
    model: Token
    version: Version | None = Field(
        None, description="a version of ml.models.info; absent: the live one; base: the entry's own weights"
    )


class LoadedModel(Reply):
    """A model in a worker's memory."""

    version: str = Field(description="the exact weights and precision, as in every reply of theirs")
    device: str
    dtype: str
    quantization: str | None = None
    memory_bytes: int
    pinned: bool
    requests: int = Field(description="requests that use it now")
    idle_s: float = Field(description="seconds since it was used last")
    notes: list[str] = Field(default_factory=list, description="what was found at load, such as a fall-back to fp32")


class ModelEntry(Reply):
    """What the catalogue says of a model, and what a worker knows of it. Absent: not known before it is loaded."""

    id: str
    kind: Kind
    default: bool = Field(description="whether it serves requests that name no model")
    default_for: list[Form] = Field(
        default_factory=list,
        description="which of these: embedding; prompt; messages; fim, a prefix and a suffix",
    )
    dimensions: int | None = None
    max_tokens: int | None = None
    matryoshka: list[int] = Field(default_factory=list, description="lengths to cut vectors to; empty: any")
    prompts: list[str] = Field(default_factory=list, description="names for prompt_name")
    tasks: list[str] = Field(default_factory=list, description="names for task")
    default_task: str | None = None
    licence: str | None = None
    commercial: bool | None = Field(None, description="false: the licence forbids commercial use")
    repository: str | None = None
    revision: str | None = None
    size_gb: float | None = None
    present: bool = Field(description="whether its weights are on the worker's machine")
    loaded: LoadedModel | None = None
    failure: str | None = Field(None, description="why it could not be loaded a moment ago")


class DeviceMemory(Reply):
    device: str
    budget_bytes: int = Field(description="what models may take")
    used_bytes: int = Field(description="what they take")


class ModelsListReply(Reply):
    worker: str = Field(description="id of the worker that answers")
    models: list[ModelEntry]
    memory: list[DeviceMemory]


class VersionEntry(Reply):
    """A version of a model on a worker's machine. Absent: not known, as most of the entry's own weights, `base`."""

    name: str
    created_at: datetime | None = None
    parent: str | None = Field(None, description="the version that was trained further")
    live: bool = Field(description="whether it is the one that is served")
    previous: bool = Field(description="whether it is the one that was served before")
    accepted: bool | None = Field(None, description="whether it proved itself")
    judged: str | None = Field(None, description="by what: its own data only, code that was held out, the operator's")
    reasons: list[str] = Field(default_factory=list, description="why it did not")
    metrics: dict[str, float] = Field(default_factory=dict, description="of its report, by name")
    weights: str | None = Field(None, description="what `version` in replies begins with")
    pairs: int | None = Field(None, description="what it was trained on")
    size_bytes: int | None = None
    problem: str | None = Field(None, description="what of it could not be read")


class ModelsInfoReply(Reply):
    worker: str
    model: ModelEntry
    versions: list[str] = Field(description="names for ml.models.reload")
    live: str = Field(description="the one of them that a reload without a version takes")
    history: list[VersionEntry] = Field(description="the same versions, newest first, base last")


class Recommendation(Reply):
    """model: what to ask for: the recommended one where it is on the worker's machine, else the best that is."""

    use: Use
    recommended: str
    model: str | None = None
    present: bool = Field(description="whether the recommended one is on the worker's machine")


class ModelsRecommendedReply(Reply):
    worker: str
    recommended: list[Recommendation]


class ModelsChangeReply(Reply):
    """After a load, a reload or an unload. unloaded: what is no longer in memory."""

    worker: str
    model: str
    loaded: LoadedModel | None = None
    unloaded: LoadedModel | None = None
