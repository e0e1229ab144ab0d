"""`ml.jobs.*`: what became of a job, and how it goes on. Knowing a job's id is the right to see and to cancel it."""

from datetime import datetime
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from .embed import Message, Reply, Token
from .finetune import JobId
from .names import JobState

TERMINAL: frozenset[JobState] = frozenset({"done", "failed", "cancelled", "rejected", "skipped"})
"""The states that a job never leaves."""
MOST_LISTED = 100
"""Jobs in one answer of ml.jobs.list: to encode them takes a worker a millisecond or two."""


class _OneJob(Message):
    """A job by its id, as `id` or, as ml.finetune answers, as `job`."""

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
    limit: int = Field(50, ge=1, le=MOST_LISTED, description="the newest ones")
    before: JobId | None = Field(None, description="only older ones than this job, the last of the page before")


class Job(Reply):
    """A job as it stands. Absent: not known yet, or never."""

    id: str
    job: str = Field(default_factory=lambda job: job["id"], description="the same, as ml.finetune calls it")
    origin: Literal["request", "nightly"] = "request"
    model: str
    source: str = Field(description="what it trains on, in words")
    digest: str | None = Field(None, description="SHA-256 of the request as it waits in the queue")
    state: JobState
    reason: str | None = Field(None, description="why it ended so, or what it waits for")
    created_at: datetime
    updated_at: datetime
    worker: str | None = Field(None, description="id of the worker that has it, or had it last")
    attempt: int = Field(0, description="how often a worker has begun with it")
    cancel_requested: bool = False
    promote: bool = Field(False, description="whether an administrator wants its version to serve once it has passed")
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    pairs_per_s: float | None = None
    eta_s: float | None = Field(None, description="seconds until the training is over")
    parent: str | None = Field(None, description="the version that was trained further")
    version: str | None = Field(None, description="the version that came of it")
    metrics: dict[str, float] = Field(default_factory=dict, description="of the report, by name")
    notes: list[str] = Field(default_factory=list, description="what was found on the way, such as a smaller batch")


class JobFrame(Job):
    """A job as it stands at some moment of a watch; in the frame `done` as it ended."""

    seq: int = 0


class JobsListReply(Reply):
    jobs: list[Job] = Field(description="newest first")
