"""`ml.finetune`: training data or a codebase in, the id of a job out. The job itself is described in jobs.py."""

from typing import Annotated, TypeAlias

from pydantic import Field, StringConstraints, model_validator

from .message import Message, Reply, Text, Token
from .names import TrainingLoss, TrainingMethod

JobId: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,96}$")]
MAX_PAIRS = 100_000


class TrainingPair(Message):
    """A text, a text that matches it, and some that do not."""

    anchor: Text
    positive: Text
    negatives: list[Text] = Field(default_factory=list, max_length=16)

    @model_validator(mode="after")
    def _told_apart(self) -> "TrainingPair":
        if self.positive in self.negatives:
            raise ValueError("its positive is among its negatives")
        return self


class FinetuneOptions(Message):
    """How to train. Absent options are chosen to suit the model."""

    method: TrainingMethod = Field("auto", description="auto: full up to 200 M parameters, else lora")
    loss: TrainingLoss = Field(
        "infonce", description="infonce: against the other pairs of a batch; triplet: against each pair's negatives"
    )
    matryoshka: bool = Field(False, description="train the first values of a vector to represent the whole")
    epochs: int = Field(1, ge=1, le=100, description="times over all pairs")
    batch_size: int = Field(
        32, ge=2, le=4096, description="pairs of a batch, each of which is told apart from the others"
    )
    micro_batch: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="pairs computed at once, halved by itself where memory is short; absent: as many as the memory "
        "allows",
    )
    learning_rate: float = Field(1e-5, gt=0, le=0.1, description="after the warm-up")
    warmup: float = Field(0.1, ge=0, le=1, description="share of steps until the full rate")
    max_tokens: int | None = Field(None, ge=8, le=32768, description="of a text; absent: 256, or what the model takes")
    patience: int = Field(2, ge=1, le=100, description="evaluations without a gain before it stops early")
    hard_negatives: int = Field(
        1, ge=0, le=8, description="similar but wrong texts that are added to each pair of a codebase"
    )
    lora_rank: int = Field(16, ge=1, le=256, description="rank of the matrices that lora trains")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="the same gives the same training")


class FinetuneRequest(Message):
    """Exactly one of path, pairs and object says what to train on."""

    id: JobId | None = Field(None, description="the job's id; the same id again is the same job; absent: a new one")
    model: Token | None = Field(None, description="model id; absent: the worker's default for embeddings")
    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)] | None = Field(
        None, description="a codebase on the worker's machine, below one of its finetune.roots"
    )
    pairs: Annotated[list[TrainingPair], Field(fail_fast=True)] | None = Field(
        None, min_length=1, max_length=MAX_PAIRS, description="pairs of texts that belong together"
    )
    object: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = Field(
        None, description="JSON lines of such pairs, by their name in the bucket ml_data; ml.finetune.upload answers it"
    )
    swap: bool = Field(False, description="true is refused with 403: the administrator decides which version serves")
    options: FinetuneOptions = FinetuneOptions()

    @model_validator(mode="after")
    def _one_source(self) -> "FinetuneRequest":
        if sum(given is not None for given in (self.path, self.pairs, self.object)) != 1:
            raise ValueError("give exactly one of path, pairs and object")
        return self


class FinetuneReply(Reply):
    job: JobId
    id: JobId = Field(
        default_factory=lambda reply: reply["job"], description="the same; the name that a job has for it"
    )
    duplicate: bool = Field(description="whether a job with this id exists already; then no new one begins")
