"""The NATS micro protocol: PING, INFO and STATS of this worker, with nats-py's own message types (ADR-32).

Anybody may ask, as often as they like, and every worker hears it: what is said is kept for a moment, small, and said to
everybody at once only so often. Nothing in it comes from a request.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.service import EndpointInfo, EndpointStats, ServiceInfo, ServicePing, ServiceStats

from subjects import names
from subjects.errors import MLError

from ..admission import RateLimit
from .reply_subject import WORKERS_INBOX, ReplySubjects

DESCRIPTION = (
    "Machine learning over NATS: embeddings, similarity, text generation, fine-tuning and the models behind them"
)
SERVICE_VERSION = version("mlbus")
FRESH_S = 0.1
"""How long an answer may be given again as it was."""
QUESTIONS_S = 100
"""How many questions are answered, a second and of each verb; the others are dropped. Those with this worker's id are
counted apart from those to all workers, and so are those to all for which workers are said to be answered. Only the
PING by which this worker watches itself is always answered: nobody else knows where."""


@dataclass(slots=True)
class Counts:
    """What STATS tells of one endpoint; times in nanoseconds, spawned work included."""

    requests: int = 0
    errors: int = 0
    last_error: str = ""
    busy_ns: int = 0

    def record(self, busy_ns: int, error: MLError | None) -> None:
        """error: of it only the kind is shown; its message may quote what the caller sent."""
        self.busy_ns += busy_ns
        if error is not None:
            self.errors += 1
            self.last_error = f"{error.code}: {type(error).__name__}"


@dataclass(slots=True)
class Described:
    """An endpoint as discovery shows it."""

    name: str
    subject: str
    queue: str
    counts: Counts = field(default_factory=Counts)


class Discovery:
    """Answers $SRV.PING, $SRV.INFO and $SRV.STATS, addressed to all, to this service or to this worker.

    metadata: what to say of the worker now. data: further figures for STATS, the same on every endpoint's `data`.
    watched_at: where the worker's watch over itself is answered.
    """

    def __init__(
        self,
        nc: Client,
        worker_id: str,
        endpoints: Sequence[Described],
        metadata: Callable[[], dict[str, str]],
        data: Callable[[], Mapping[str, Any]],
        replies: ReplySubjects,
        watched_at: str = "",
    ) -> None:
        self._nc = nc
        self._replies = replies
        self.id = worker_id
        self._endpoints = endpoints
        self._metadata = metadata
        self._data = data
        self._watch = (f"$SRV.PING.{names.SERVICE}.{worker_id}", watched_at)
        self._of_workers = RateLimit(QUESTIONS_S)
        self._started = datetime.now(UTC)

    async def subscribe(self) -> list[Any]:
        verbs = {"PING": self.ping, "INFO": self.info, "STATS": self.stats}
        subscriptions = []
        for verb, message in verbs.items():
            kept = _Kept(message)
            to_all, to_one = (functools.partial(self._answer, kept, RateLimit(QUESTIONS_S)) for _ in range(2))
            for target, cb in (("", to_all), (f".{names.SERVICE}", to_all), (f".{names.SERVICE}.{self.id}", to_one)):
                subscriptions.append(await self._nc.subscribe(f"$SRV.{verb}{target}", cb=cb))
        return subscriptions

    async def _answer(self, kept: "_Kept", rate: RateLimit, msg: Msg) -> None:
        if (msg.subject, msg.reply) != self._watch:
            # A reply subject is anybody's to write: what says that it comes from a worker is no more than apart.
            of_workers = msg.subject == f"$SRV.PING.{names.SERVICE}" and msg.reply.startswith(f"{WORKERS_INBOX}.")
            if not (self._of_workers if of_workers else rate).allows():
                return
        if self._replies.admit(msg):
            await self._nc.publish(msg.reply, kept.said())

    @property
    def _identity(self) -> dict[str, Any]:
        return {"id": self.id, "name": names.SERVICE, "version": SERVICE_VERSION, "metadata": self._metadata()}

    def ping(self) -> dict[str, Any]:
        return ServicePing(**self._identity).to_dict()

    def info(self) -> dict[str, Any]:
        endpoints = [
            EndpointInfo(name=endpoint.name, subject=endpoint.subject, queue_group=endpoint.queue)
            for endpoint in self._endpoints
        ]
        where = {"schemas": names.SCHEMA, "max_payload": str(self._nc.max_payload)}
        identity = self._identity | {"metadata": self._metadata() | where}
        return ServiceInfo(**identity, description=DESCRIPTION, endpoints=endpoints).to_dict()

    def stats(self) -> dict[str, Any]:
        data = dict(self._data())
        endpoints = [
            EndpointStats(
                name=endpoint.name,
                subject=endpoint.subject,
                queue_group=endpoint.queue,
                num_requests=counts.requests,
                num_errors=counts.errors,
                last_error=counts.last_error,
                processing_time=counts.busy_ns,
                average_processing_time=counts.busy_ns // max(1, counts.requests),
                data=data,
            )
            for endpoint in self._endpoints
            for counts in (endpoint.counts,)
        ]
        return ServiceStats(**self._identity, started=self._started, endpoints=endpoints).to_dict()


class _Kept:
    """A message in JSON, made again when it has been kept for FRESH_S."""

    def __init__(self, message: Callable[[], Mapping[str, Any]]) -> None:
        self._message = message
        self._body = b""
        self._until = 0.0

    def said(self) -> bytes:
        now = time.monotonic()
        if now > self._until:
            self._body, self._until = orjson.dumps(self._message()), now + FRESH_S
        return self._body
