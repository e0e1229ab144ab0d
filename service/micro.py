"""The NATS micro protocol: PING, INFO and STATS of this worker, with nats-py's own message types (ADR-32)."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import orjson
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.service import EndpointInfo, EndpointStats, ServiceInfo, ServicePing, ServiceStats
from pydantic import TypeAdapter

from subjects import names

from .reply_subject import ReplySubjects

DESCRIPTION = (
    "Machine learning over NATS: embeddings, similarity, text generation, fine-tuning and the models behind them"
)
SERVICE_VERSION = version("mlbus")


@dataclass(slots=True)
class Counts:
    """What STATS tells of one endpoint; times in nanoseconds, spawned work included."""

    requests: int = 0
    errors: int = 0
    last_error: str = ""
    busy_ns: int = 0

    def record(self, busy_ns: int, error: str | None) -> None:
        self.busy_ns += busy_ns
        if error is not None:
            self.errors += 1
            self.last_error = error


@dataclass(slots=True)
class Described:
    """An endpoint as discovery shows it."""

    name: str
    subject: str
    queue: str
    request: Any
    reply: Any
    counts: Counts = field(default_factory=Counts)


class Discovery:
    """Answers $SRV.PING, $SRV.INFO and $SRV.STATS, addressed to all, to this service or to this worker.

    metadata: what to say of the worker now. data: further figures for STATS, the same on every endpoint's `data`.
    """

    def __init__(
        self,
        nc: Client,
        worker_id: str,
        endpoints: Sequence[Described],
        metadata: Callable[[], dict[str, str]],
        data: Callable[[], Mapping[str, Any]],
        replies: ReplySubjects,
    ) -> None:
        self._nc = nc
        self._replies = replies
        self.id = worker_id
        self._endpoints = endpoints
        self._metadata = metadata
        self._data = data
        self._started = datetime.now(UTC)

    async def subscribe(self) -> list[Any]:
        verbs = {"PING": self.ping, "INFO": self.info, "STATS": self.stats}
        return [
            await self._nc.subscribe(f"$SRV.{verb}{target}", cb=functools.partial(self._answer, message))
            for verb, message in verbs.items()
            for target in ("", f".{names.SERVICE}", f".{names.SERVICE}.{self.id}")
        ]

    async def _answer(self, message: Callable[[], Mapping[str, Any]], msg: Msg) -> None:
        if self._replies.admit(msg):
            await self._nc.publish(msg.reply, orjson.dumps(message()))

    @property
    def _identity(self) -> dict[str, Any]:
        return {"id": self.id, "name": names.SERVICE, "version": SERVICE_VERSION, "metadata": self._metadata()}

    def ping(self) -> dict[str, Any]:
        return ServicePing(**self._identity).to_dict()

    def info(self) -> dict[str, Any]:
        endpoints = [
            EndpointInfo(
                name=endpoint.name,
                subject=endpoint.subject,
                queue_group=endpoint.queue,
                metadata={
                    "request_schema": _schema(endpoint.request),
                    "reply_schema": _schema(endpoint.reply),
                    "max_payload": str(self._nc.max_payload),
                },
            )
            for endpoint in self._endpoints
        ]
        return ServiceInfo(**self._identity, description=DESCRIPTION, endpoints=endpoints).to_dict()

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


@functools.cache
def _schema(message: Any) -> str:
    return orjson.dumps(TypeAdapter(message).json_schema()).decode()
