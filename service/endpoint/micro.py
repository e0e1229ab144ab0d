"""The NATS micro protocol: PING, INFO and STATS of this worker, with nats-py's own message types (NATS ADR-32).

Anybody may ask, at any rate, and every worker hears it: answers are small, cached for a moment and limited in rate.
Nothing in them comes from a request.
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

from ..admission import RateLimit
from ..bus.credentials import WORKERS_INBOX
from .reply_subject import ReplySubjects
from .route import ServedRoute

DESCRIPTION = (
    "Machine learning over NATS: embeddings, similarity, text generation, fine-tuning and the models behind them"
)
SERVICE_VERSION = version("mlbus")
FRESH_S = 0.1
"""How long an answer is cached."""
QUESTIONS_S = 100
"""How many questions of each verb are answered a second; the others are dropped. Three kinds are counted apart: those
with this worker's id, those to all workers, and PINGs to all whose reply subject is a worker's. Only the PING by which
this worker watches itself is always answered: nobody else knows its reply subject."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """Answers $SRV.PING, $SRV.INFO and $SRV.STATS, addressed to all, to this service or to this worker.

    metadata: of the worker, now. data: further figures for STATS, the same on every endpoint's `data`. watched_at:
    where the worker's PING to itself is answered.
    """

    nc: Client
    worker_id: str
    routes: Sequence[ServedRoute]
    metadata: Callable[[], dict[str, str]]
    data: Callable[[], Mapping[str, Any]]
    replies: ReplySubjects
    watched_at: str = ""
    _worker_rate: RateLimit = field(default_factory=lambda: RateLimit(QUESTIONS_S))
    _started: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def subscribe(self) -> list[Any]:
        verbs = {"PING": self.ping, "INFO": self.info, "STATS": self.stats}
        subscriptions, service = [], f".{names.SERVICE}"
        for verb, message in verbs.items():
            cached = _Cached(message)
            to_all, to_one = (functools.partial(self._answer, cached, RateLimit(QUESTIONS_S)) for _ in range(2))
            for target, cb in (("", to_all), (service, to_all), (f"{service}.{self.worker_id}", to_one)):
                subscriptions.append(await self.nc.subscribe(f"$SRV.{verb}{target}", cb=cb))
        return subscriptions

    async def _answer(self, cached: "_Cached", rate: RateLimit, msg: Msg) -> None:
        if (msg.subject, msg.reply) != (f"$SRV.PING.{names.SERVICE}.{self.worker_id}", self.watched_at):
            # Anybody can name a worker's reply subject: such questions are only counted apart.
            from_worker = msg.subject == f"$SRV.PING.{names.SERVICE}" and msg.reply.startswith(f"{WORKERS_INBOX}.")
            if not (self._worker_rate if from_worker else rate).allows():
                return
        if self.replies.admit(msg):
            await self.nc.publish(msg.reply, cached.body())

    @property
    def _identity(self) -> dict[str, Any]:
        return {"id": self.worker_id, "name": names.SERVICE, "version": SERVICE_VERSION, "metadata": self.metadata()}

    def ping(self) -> dict[str, Any]:
        return ServicePing(**self._identity).to_dict()

    def info(self) -> dict[str, Any]:
        endpoints = [
            EndpointInfo(name=served.name, subject=served.route.subject, queue_group=served.queue)
            for served in self.routes
        ]
        where = {"schemas": names.SCHEMA, "max_payload": str(self.nc.max_payload)}
        identity = self._identity | {"metadata": self.metadata() | where}
        return ServiceInfo(**identity, description=DESCRIPTION, endpoints=endpoints).to_dict()

    def stats(self) -> dict[str, Any]:
        data = dict(self.data())
        endpoints = [
            EndpointStats(
                name=served.name,
                subject=served.route.subject,
                queue_group=served.queue,
                num_requests=counts.requests,
                num_errors=counts.errors,
                last_error=counts.last_error,
                processing_time=counts.busy_ns,
                average_processing_time=counts.busy_ns // max(1, counts.requests),
                data=data,
            )
            for served in self.routes
            for counts in (served.counts,)
        ]
        return ServiceStats(**self._identity, started=self._started, endpoints=endpoints).to_dict()


class _Cached:
    """A message in JSON, made anew once it is older than FRESH_S."""

    def __init__(self, message: Callable[[], Mapping[str, Any]]) -> None:
        self._message = message
        self._body = b""
        self._until = 0.0

    def body(self) -> bytes:
        now = time.monotonic()
        if now > self._until:
            self._body, self._until = orjson.dumps(self._message()), now + FRESH_S
        return self._body
