"""The table of subjects: the messages on each of them, who may ask, and which workers answer.

What serves, describes, documents or calls a subject is made from this table or tested against it. A new subject is
one entry here, its name in names.py and a handler in the worker. HTTP follows by itself, the reference by
`make reference`; what else it may need is in CONTRIBUTING.md, "Add a subject".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeAlias

from pydantic import BaseModel
from typing_extensions import TypeVar

from . import embed, finetune, generate, jobs, models, names, schema, tokenize, uploads
from .stream import CHUNK, DONE, JOB, TOKEN

ReplyT = TypeVar("ReplyT", default=Any)
FrameT = TypeVar("FrameT", default=Any)


@dataclass(frozen=True, slots=True)
class Route(Generic[ReplyT, FrameT]):
    """A subject and the messages on it.

    reply: the one reply. frames: the messages of a streamed reply, by event; any stream can also bring `ping` and
    `error`. Empty: the subject does not stream. lasting: it always streams, without a deadline.
    text_field: the field of the request that a body of plain text stands for.
    role: the least role that may ask. inference: whether a model computes the answer; other requests are admitted
    apart from these. every_worker: all workers answer, otherwise one of them does. by_worker: one worker can be asked
    on the subject with its id at the end.
    """

    subject: str
    request: type[BaseModel]
    reply: type[ReplyT]
    text_field: str | None = None
    frames: Mapping[str, type[FrameT]] = field(default_factory=dict)
    lasting: bool = False
    role: names.Role = "client"
    inference: bool = False
    every_worker: bool = False
    by_worker: bool = False

    @property
    def name(self) -> str:
        """As endpoints are called in the micro protocol, in metrics and in logs."""
        return self.subject.removeprefix(f"{names.SERVICE}.").replace(".", "-")

    @property
    def has_text_reply(self) -> bool:
        """Whether its replies have a form in plain text."""
        return hasattr(self.reply, "as_text")

    def to_worker(self, worker_id: str | None) -> "Route[ReplyT, FrameT]":
        """The same on the subject of one worker; unchanged without one."""
        if not worker_id:
            return self
        return replace(self, subject=f"{self.subject}.{worker_id}", every_worker=False, by_worker=False)


EmbedFrame: TypeAlias = embed.EmbedChunk | embed.EmbedDone
GenerateFrame: TypeAlias = generate.TokenFrame | generate.GenerateDone
_EMBED_FRAMES: Mapping[str, type[EmbedFrame]] = {CHUNK: embed.EmbedChunk, DONE: embed.EmbedDone}
_GENERATE_FRAMES: Mapping[str, type[GenerateFrame]] = {TOKEN: generate.TokenFrame, DONE: generate.GenerateDone}
_JOB_FRAMES = {JOB: jobs.JobFrame, DONE: jobs.JobFrame}
_similarity: Any = embed.SimilarityReply
"""A union, which is no type to mypy."""
_CHANGE: Any = {"role": "admin", "every_worker": True, "by_worker": True}
"""Of requests that change the models in a worker's memory."""

EMBED = Route(names.EMBED, embed.EmbedRequest, embed.EmbedReply, "text", inference=True)
EMBED_BATCH = Route(
    names.EMBED_BATCH, embed.EmbedBatchRequest, embed.EmbedBatchReply, frames=_EMBED_FRAMES, inference=True
)
SIMILARITY = Route(names.SIMILARITY, embed.SimilarityRequest, _similarity, inference=True)
GENERATE = Route(
    names.GENERATE, generate.GenerateRequest, generate.GenerateReply, "prompt", _GENERATE_FRAMES, inference=True
)
GENERATE_BATCH = Route(
    names.GENERATE_BATCH,
    generate.GenerateBatchRequest,
    generate.GenerateBatchReply,
    frames=_GENERATE_FRAMES,
    inference=True,
)
TOKENIZE = Route(names.TOKENIZE, tokenize.TokenizeRequest, tokenize.TokenizeReply, "text", inference=True)
DETOKENIZE = Route(names.DETOKENIZE, tokenize.DetokenizeRequest, tokenize.DetokenizeReply, inference=True)
FINETUNE = Route(names.FINETUNE, finetune.FinetuneRequest, finetune.FinetuneReply, "path")
FINETUNE_UPLOAD = Route(names.FINETUNE_UPLOAD, uploads.UploadRequest, uploads.UploadReply)
JOBS_GET = Route(names.JOBS_GET, jobs.JobsGetRequest, jobs.Job, "id")
JOBS_WATCH = Route(names.JOBS_WATCH, jobs.JobsWatchRequest, jobs.JobFrame, "id", _JOB_FRAMES, lasting=True)
JOBS_CANCEL = Route(names.JOBS_CANCEL, jobs.JobsCancelRequest, jobs.Job, "id")
JOBS_LIST = Route(names.JOBS_LIST, jobs.JobsListRequest, jobs.JobsListReply, "state", role="admin")
MODELS_LIST = Route(names.MODELS_LIST, models.ModelsListRequest, models.ModelsListReply, "kind", by_worker=True)
MODELS_INFO = Route(names.MODELS_INFO, models.ModelsInfoRequest, models.ModelsInfoReply, "model", by_worker=True)
MODELS_RECOMMENDED = Route(
    names.MODELS_RECOMMENDED, models.ModelsRecommendedRequest, models.ModelsRecommendedReply, "use"
)
MODELS_LOAD = Route(names.MODELS_LOAD, models.ModelsLoadRequest, models.ModelsChangeReply, "model", **_CHANGE)
MODELS_UNLOAD = Route(names.MODELS_UNLOAD, models.ModelsUnloadRequest, models.ModelsChangeReply, "model", **_CHANGE)
MODELS_RELOAD = Route(names.MODELS_RELOAD, models.ModelsReloadRequest, models.ModelsChangeReply, "model", **_CHANGE)
MODELS_PROMOTE = Route(
    names.MODELS_PROMOTE, models.ModelsPromoteRequest, models.ModelsPromoteReply, "job", role="admin"
)
SCHEMA = Route(names.SCHEMA, schema.SchemaRequest, schema.SchemaReply, "subject")

ROUTES: Mapping[str, Route] = {route.subject: route for route in [*globals().values()] if isinstance(route, Route)}
"""Every route above, by its subject."""
