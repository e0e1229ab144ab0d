"""`ml.models.*`: the catalogue, the models in a worker's memory, and the versions of a model."""

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from .finetune import JobId
from .message import Message, Reply, Token
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
        None, description="auto: as the model's entry says; absent, like quantization: the last choice"
    )
    quantization: Quantization | None = Field(
        None, description="of the weights; absent with a dtype given: as its entry says"
    )
    pin: bool | None = Field(None, description="true: never evict it, nor unload it when idle")


class ModelsUnloadRequest(Message):
    model: Token
    force: bool = Field(False, description="unload it even if requests use it; they finish first")


class ModelsReloadRequest(Message):
    model: Token
    version: Version | None = Field(
        None, description="a version of ml.models.info; absent: the live one; base: the entry's own weights"
    )


class LoadedModel(Reply):
    """A model in a worker's memory."""

    version: str = Field(description="the exact weights and precision, as in every reply")
    device: str
    dtype: str
    quantization: str | None = None
    memory_bytes: int
    pinned: bool
    requests: int = Field(description="requests that use it now")
    idle_s: float = Field(description="seconds since its last use")
    notes: list[str] = Field(
        default_factory=list, description="what happened while it was loaded, such as a fall-back to fp32"
    )


class ModelEntry(Reply):
    """A model of the catalogue, with what the worker knows of it. Some fields are absent until it is loaded."""

    id: str
    kind: Kind
    default: bool = Field(description="whether it serves requests that name no model")
    default_for: list[Form] = Field(
        default_factory=list,
        description="the kinds of requests that it serves if they name no model; fim: prefix and suffix",
    )
    forms: list[Form] = Field(
        default_factory=list, description="the kinds of requests that it serves, as far as is known before it is loaded"
    )
    dimensions: int | None = None
    max_tokens: int | None = None
    matryoshka: list[int] = Field(default_factory=list, description="lengths to which vectors may be cut; empty: any")
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
    failure: str | None = Field(None, description="why its last load failed")


class DeviceMemory(Reply):
    device: str
    budget_bytes: int = Field(description="memory for models")
    used_bytes: int = Field(description="memory that they use")


class ModelsListReply(Reply):
    worker: str = Field(description="id of the worker that answers")
    models: list[ModelEntry]
    memory: list[DeviceMemory]


class VersionEntry(Reply):
    """A version of a model on a worker's machine. Most fields are absent for `base`, the entry's own weights."""

    name: str
    created_at: datetime | None = None
    parent: str | None = Field(None, description="the version that was trained further")
    live: bool = Field(description="whether it is served")
    previous: bool = Field(description="whether it was served before the present one")
    accepted: bool | None = Field(None, description="whether it passed its checks")
    judged: str | None = Field(None, description="the data of the checks: its own, held-out code, or the operator's")
    reasons: list[str] = Field(default_factory=list, description="why it did not pass")
    metrics: dict[str, float] = Field(default_factory=dict, description="metrics of its report, by name")
    weights: str | None = Field(None, description="the beginning of `version` in replies")
    pairs: int | None = Field(None, description="number of training pairs")
    size_bytes: int | None = None
    problem: str | None = Field(None, description="which part of it could not be read")


class ModelsInfoReply(Reply):
    worker: str
    model: ModelEntry
    versions: list[str] = Field(description="names for ml.models.reload")
    live: str = Field(description="the version of a reload that names none")
    history: list[VersionEntry] = Field(description="the same versions, newest first, base last")


class Recommendation(Reply):
    """model: the model to use: the recommended one if it is on the worker's machine, or else the best one there."""

    use: Use
    recommended: str
    model: str | None = None
    present: bool = Field(description="whether the recommended one is on the worker's machine")


class ModelsRecommendedReply(Reply):
    worker: str
    recommended: list[Recommendation]


class ModelsChangeReply(Reply):
    """The outcome of a load, a reload or an unload. unloaded: the model that was in memory."""

    worker: str
    model: str
    loaded: LoadedModel | None = None
    unloaded: LoadedModel | None = None


class ModelsPromoteRequest(Message):
    """A version by its model and its name, or the version of a job by the job's id."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["model", "version"]}, {"required": ["job"]}]})

    model: Token | None = Field(None, description="model id; with a version")
    version: Version | None = Field(None, description="an accepted version of ml.models.info, which serves at once")
    job: JobId | None = Field(
        None, description="serve its version at once; or, if the job still runs, once it has passed"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> "ModelsPromoteRequest":
        named = self.model is not None, self.version is not None, self.job is not None
        if named not in ((True, True, False), (False, False, True)):
            raise ValueError("give 'model' and 'version', or 'job' alone")
        return self


class ModelsPromoteReply(Reply):
    """live: whether the version serves now; if not, the job still runs, and it will serve once it has passed."""

    worker: str
    model: str
    version: str | None = None
    job: str | None = None
    live: bool
    notes: list[str] = Field(
        default_factory=list, description="further remarks, such as workers that could not be changed"
    )
