"""The endpoint: owns the subscriptions and every request in flight, admits or refuses, and drains.

Knows routes, not models: a route's handler takes a validated request and returns a reply or frames.
"""

import asyncio
import functools
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from subjects import codec, names
from subjects.errors import (
    Busy,
    Cancelled,
    DeadlinePassed,
    Internal,
    InvalidField,
    Malformed,
    MLError,
    TooLarge,
    Unavailable,
)

from ..admission import past_deadline, retry_after_ms
from ..bus.client import BusClient
from ..bus.connection import settled
from ..errors import INTERNAL, to_wire
from . import micro
from .call import Call, ReplyLost
from .frames import send_stream
from .reply_subject import IMPORTED, MOST_BYTES, WORKERS_INBOX, ReplySubjects
from .route import Handler, ServedRoute, served_routes

log = structlog.get_logger(__name__)

RETURN_S = 5.0
"""How long callers may take to come back after our connection was lost, for the server may have been away for all."""
PROBE_S = 1.0
"""How often callers that named a subject for it are asked whether they still wait."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker holds at once, of management, of the rest, and streams that last; past it it answers 429.

    Of the last one user has at most a quarter.
    """

    requests: int
    request_bytes: int
    default_timeout_s: float
    watches: int = 256


@dataclass(slots=True)
class Held:
    """Requests in flight, the bytes of their bodies, and how many there are of each source."""

    requests: int = 0
    size: int = 0
    of: Counter[str] = field(default_factory=Counter)

    def add(self, call: Call, times: int = 1) -> None:
        """One more; with times -1 one less."""
        self.requests += times
        self.size += times * call.size
        self.of[call.source] += times
        if not self.of[call.source]:
            del self.of[call.source]


class Observer(Protocol):
    """Who hears of every request that ends."""

    def ended(self, call: Call, seconds: float, error: MLError | None) -> None: ...

    def traced(self, call: Call) -> Any: ...

    def denied(self) -> None: ...


@dataclass(slots=True)
class Endpoint:
    """Subscribed routes and the calls in flight on them; made by `serving`. accepting: whether it takes requests.

    watched_at: see micro.Discovery.
    """

    nc: BusClient
    worker_id: str
    handlers: Mapping[str, Handler]
    limits: Limits
    observer: Observer
    metadata: Callable[[], dict[str, str]]
    data: Callable[[], Mapping[str, Any]]
    replies: ReplySubjects
    watched_at: str = ""
    calls: dict[int, Call] = field(default_factory=dict)
    accepting: bool = False
    _held: defaultdict[tuple[bool, bool], Held] = field(default_factory=lambda: defaultdict(Held))
    _serial: int = 0
    _service_s: float = 0.05
    _subscriptions: list[Any] = field(default_factory=list)
    _control: list[Any] = field(default_factory=list)
    _gone: str = ""

    @property
    def bytes_in_flight(self) -> int:
        """Of the bodies of all requests in flight."""
        return sum(held.size for held in self._held.values())

    async def start(self) -> None:
        """Subscribe to everything and return once the server knows of it."""
        routes = list(served_routes(self.handlers, self.worker_id))
        described = [micro.Described(served.name, served.route.subject, served.queue) for served in routes]
        self._gone = f"{WORKERS_INBOX}.{secrets.token_hex(16)}"  # callers see it: nothing else may come there
        self._control = [
            await self.nc.subscribe(f"{names.CANCEL}.*", cb=self._on_cancel),
            await self.nc.subscribe(f"{self._gone}.*", cb=self._on_gone),
        ]
        for served, shown in zip(routes, described, strict=True):
            accept = functools.partial(self._on_request, served, shown.counts)
            self._subscriptions.append(await self.nc.subscribe(served.route.subject, served.queue, cb=accept))
        told = self.metadata, self.data, self.replies, self.watched_at
        discovery = micro.Discovery(self.nc, self.worker_id, described, *told)
        self._control += await discovery.subscribe()
        await settled(self.nc)
        self.accepting = True

    async def _on_request(self, served: ServedRoute, counts: micro.Counts, msg: Msg) -> None:
        counts.requests += 1
        if not self.replies.admit(msg):
            counts.record(0, Malformed("no reply subject that may be answered"))
            return
        self._serial += 1
        route = served.route
        call = Call(self.nc, served.name, msg, self._serial, self.limits.default_timeout_s, route.has_text_reply)
        if route.lasting:
            call.last()
        held = self._held[route.inference, route.lasting]
        most = self.limits.watches if route.lasting else self.limits.requests
        refusal = call.asked.fault or self._unaskable(call) or self._refusal(call, held, most) or _late(served, call)
        msg.data = b""  # nats-py keeps each subscription's last message
        if refusal:  # at once: under a flood that is most of the work
            await self._serve(served, counts, call, refusal)
            return
        call.gone = f"{self._gone}.{secrets.token_hex(16)}"
        self.calls[call.serial] = call
        held.add(call)
        call.task = asyncio.create_task(self._work(served, counts, call, held), name=f"{served.name}.{call.serial}")

    def _unaskable(self, call: Call) -> MLError | None:
        """Note where the caller can be asked whether it still waits, or say why not there."""
        caller = call.asked.caller or ""
        if call.reply.startswith(f"{IMPORTED}."):  # that subject is another account's, and here nobody listens to it
            return None
        if not caller or (self.replies.allow(caller) and caller != call.reply):
            call.caller = caller
            whose = self.replies.user if call.lasting else self.replies.source
            call.source = whose(caller or call.reply)
            return None
        allowed = ", ".join(self.replies.prefixes)
        must = f"must be a subject below {allowed}, of at most {MOST_BYTES} bytes, and not the reply subject"
        return InvalidField(f"{names.CALLER} {must}")

    def _refusal(self, call: Call, held: Held, most: int) -> MLError | None:
        size, share = call.size, max(1, most // 4)
        if size > self.limits.request_bytes:
            return TooLarge(f"the request takes {size} bytes, this worker reads {self.limits.request_bytes} at most")
        if held.requests >= most:
            full = f"{most} requests"
        elif call.lasting and held.of[call.source] >= share:
            full = f"{share} such streams for the same user"
        elif held.size + size > self.limits.request_bytes:
            full = f"{self.limits.request_bytes} bytes of requests"
        else:
            return None
        why = f"this worker holds {full} already; try again later"
        return Busy(why, retry_after_ms=retry_after_ms(self._service_s))

    async def _work(self, served: ServedRoute, counts: micro.Counts, call: Call, held: Held) -> None:
        call.running = True
        try:
            await self._serve(served, counts, call)
        finally:
            del self.calls[call.serial]
            held.add(call, -1)

    async def _serve(
        self, served: ServedRoute, counts: micro.Counts, call: Call, refusal: MLError | None = None
    ) -> None:
        try:
            if error := refusal or call.ended_by or await self._outcome(served, call):
                await call.fail(error)
            if not served.route.every_worker:  # others may still answer
                await call.close()
        except ReplyLost as error:
            call.answered = Internal(str(error))
            log.warning("reply.lost", route=served.name, request_id=call.asked.request_id, error=str(error))
        finally:
            self._record(call, counts)

    async def _outcome(self, served: ServedRoute, call: Call) -> MLError | None:
        """Answer the call, or return the error to answer with."""
        try:
            async with asyncio.timeout_at(None if call.lasting else call.deadline) as timer:
                call.timer = timer
                with self.observer.traced(call):
                    await self._answer(served, call)
        except asyncio.CancelledError:
            return call.ended_by or Unavailable("this worker is shutting down")
        except ReplyLost:
            raise
        except Exception as error:
            if timer.expired():
                return DeadlinePassed("the deadline passed before the answer was ready")
            return self._explained(error, call)
        return None

    async def _answer(self, served: ServedRoute, call: Call) -> None:
        route = served.route
        fields = codec.read(call.take_body(), call.asked.request_type, route.request, route.text_field)
        if "stream" in route.request.model_fields:
            call.take_stream(fields)
        request = codec.validate(fields, route.request)
        if route.frames:
            await send_stream(call, served.answer(request, call), call.gone)
        elif call.framed:
            raise Malformed(f"{route.subject} does not stream; leave {names.STREAM} out")
        else:
            await call.answer(await served.answer(request, call))

    def _explained(self, error: Exception, call: Call) -> MLError:
        known = to_wire(error)
        if known is None:
            log.exception("request.failed", route=call.route, request_id=call.asked.request_id)
        return known or Internal(INTERNAL)

    def _record(self, call: Call, counts: micro.Counts) -> None:
        seconds = 0.0 if call.lasting else asyncio.get_running_loop().time() - call.received
        error = call.answered if isinstance(call.answered, MLError) else None
        counts.record(int(seconds * 1e9), error)
        self.observer.ended(call, seconds, error)
        if error is None and not call.lasting:
            self._service_s += 0.05 * (seconds - self._service_s)

    async def _on_cancel(self, msg: Msg) -> None:
        request_id = msg.subject.removeprefix(f"{names.CANCEL}.")
        for call in [call for call in self.calls.values() if call.asked.request_id == request_id]:
            call.cancel()

    async def _on_gone(self, msg: Msg) -> None:
        call = next((call for call in self.calls.values() if call.gone == msg.subject), None)
        back_s = asyncio.get_running_loop().time() - self.nc.reconnected_at
        if call and back_s > RETURN_S and (msg.headers or {}).get("Status") == "503":
            its = [other for other in self.calls.values() if other.caller == call.caller] if call.caller else [call]
            for lost in its:
                lost.end(Cancelled("nobody waits for the answer any more"))

    async def ask_callers(self) -> None:
        """Ask without end, now and then, whether callers are still there: once each, however many its requests."""
        while True:
            await asyncio.sleep(PROBE_S)
            callers = {call.caller: call for call in self.calls.values() if call.caller}
            for call in callers.values() if self.nc.is_connected else ():
                with suppress(ReplyLost):
                    await call.probe(call.gone)

    def on_denied(self, subject: str) -> None:
        """The server refused a publish. The work for an answer ends. subject: in lower case."""
        if self.replies.include(subject):
            self.observer.denied()
        for call in list(self.calls.values()):
            if call.reply.lower() == subject:
                call.deny()
            elif call.caller.lower() == subject:
                call.caller = ""  # it cannot be asked there

    async def drain(self, grace_s: float) -> None:
        """Stop taking requests, finish those taken, answer what the grace time leaves with 503."""
        self.accepting = False
        log.info("endpoint.draining", in_flight=len(self.calls), grace_s=grace_s)
        try:
            await self._fence()
        except (NatsError, OSError) as error:
            log.warning("endpoint.fence_failed", error=str(error))
        await self._finish(grace_s)
        if not self.nc.is_closed:
            for subscription in self._control:
                await subscription.unsubscribe()
        log.info("endpoint.drained")

    async def _fence(self) -> None:
        """Return when every request that the server has routed here has become a call.

        A PING may overtake an UNSUB that is still in the client's buffer, so one flush is no barrier: the UNSUBs go
        out first, and the flush inside each subscription's own drain is the second.
        """
        for subscription in self._subscriptions:
            await self.nc._send_unsubscribe(subscription._id)
        await self.nc.flush()
        await asyncio.gather(*(subscription.drain() for subscription in self._subscriptions))

    async def _finish(self, grace_s: float) -> None:
        self._end(call for call in self.calls.values() if call.lasting)
        tasks = _tasks(self.calls.values())
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
        self._end(self.calls.values())
        if left := _tasks(self.calls.values()):
            await asyncio.wait(left, timeout=5)

    def _end(self, calls: Iterable[Call]) -> None:
        """Answer calls as a worker does that leaves."""
        for call in list(calls):
            call.end(Unavailable("this worker is shutting down; ask again", retry_after_ms=100))


def _late(served: ServedRoute, call: Call) -> MLError | None:
    """Refuse without reading what could not be ready in time, whatever is asked."""
    if served.ready_in_s is None:
        return None
    return past_deadline("this worker would take", served.ready_in_s(call), call.deadline - call.received)


def _tasks(calls: Iterable[Call]) -> list[asyncio.Task[None]]:
    return [call.task for call in calls if call.task]


@asynccontextmanager
async def serving(endpoint: Endpoint, grace_s: float) -> AsyncIterator[Endpoint]:
    """Serve while the context is open; leaving it drains."""
    await endpoint.start()
    asking = asyncio.create_task(endpoint.ask_callers(), name="ask callers")
    try:
        yield endpoint
    finally:
        await endpoint.drain(grace_s)
        asking.cancel()
