"""`ml.jobs.*`: the states of jobs. Whoever knows the id of a job may see and cancel it."""

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from .finetune import JobId
from .message import Message, Reply, Token
from .names import JobState

TERMINAL: frozenset[JobState] = frozenset({"done", "failed", "cancelled", "rejected", "skipped"})
"""The final states of a job."""
MAX_LISTED = 100
"""The largest page of ml.jobs.list, which takes a worker one or two milliseconds to encode."""


class _OneJob(Message):
    """A job by its id, which is called `id` or, as in the reply of ml.finetune, `job`."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["id"]}, {"required": ["job"]}]})

    id: JobId | None = Field(None, description="the job's id")
    job: JobId | None = Field(None, description="the same; one of the two is enough")

    @property
    def job_id(self) -> JobId:
        return self.id or self.job or ""

    @model_validator(mode="after")
    def _one_name(self) -> "_OneJob":
        if self.id is None and self.job is None:
            raise ValueError("send the job's id, as 'id' or as 'job'")
        if self.id is not None and self.job not in (None, self.id):
            raise ValueError("fields 'id' and 'job' name two jobs; send one of the two")
        return self


class JobsGetRequest(_OneJob):
    pass


class JobsWatchRequest(_OneJob):
    pass


class JobsCancelRequest(_OneJob):
    pass


class JobsListRequest(Message):
    state: JobState | None = Field(None, description="only jobs in this state")
    model: Token | None = Field(None, description="only jobs for this model")
    limit: int = Field(50, ge=1, le=MAX_LISTED, description="the newest ones")
    before: JobId | None = Field(None, description="only jobs older than this one, the last of the previous page")


class Job(Reply):
    """The present state of a job. Fields are absent until they are known."""

    id: str
    job: str = Field(
        default_factory=lambda job: job["id"], description="the same; the name that ml.finetune has for it"
    )
    origin: Literal["request", "nightly"] = "request"
    model: str
    source: str = Field(description="what it trains on")
    digest: str | None = Field(None, description="SHA-256 of the request in the queue")
    state: JobState
    reason: str | None = Field(None, description="why it ended this way, or what it waits for")
    created_at: datetime
    updated_at: datetime
    worker: str | None = Field(None, description="id of the worker that runs it, or ran it last")
    attempt: int = Field(0, description="how often a worker has started it")
    cancel_requested: bool = False
    promote: bool = Field(False, description="whether its version will serve once it has passed")
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    pairs_per_s: float | None = None
    eta_s: float | None = Field(None, description="seconds until the training ends")
    parent: str | None = Field(None, description="the version that is trained further")
    version: str | None = Field(None, description="the new version")
    metrics: dict[str, float] = Field(default_factory=dict, description="metrics of the report, by name")
    notes: list[str] = Field(default_factory=list, description="what happened during the job, such as a smaller batch")


class JobFrame(Job):
    """A state of a watched job; the frame `done` has its final state."""

    seq: int = 0


class JobsListReply(Reply):
    jobs: list[Job] = Field(description="newest first")
