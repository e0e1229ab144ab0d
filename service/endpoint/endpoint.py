"""The endpoint: subscribes to routes, turns messages into calls, runs their handlers, and drains."""

import asyncio
import functools
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from subjects import codec, names
from subjects.errors import DeadlinePassed, Internal, InvalidField, Malformed, MLError, Unavailable

from ..bus.client import BusClient
from ..bus.connection import settled
from ..bus.credentials import WORKERS_INBOX
from ..bus.held_messages import RETURN_S
from ..errors import INTERNAL, to_wire
from ..telemetry import Telemetry
from .call import Call, ReplyLost
from .frames import send_stream
from .in_flight import InFlight
from .micro import Discovery
from .reply_subject import IMPORTED, MOST_BYTES, ReplySubjects
from .route import Handler, ServedRoute, served_routes

log = structlog.get_logger(__name__)

ASK_S = 1.0
"""How often callers that named a subject for it are asked whether they still wait."""


@dataclass(slots=True)
class Endpoint:
    """Served by `serving`. accepting: whether it takes requests. metadata, data, watched_at: see Discovery."""

    nc: BusClient
    worker_id: str
    handlers: Mapping[str, Handler]
    in_flight: InFlight
    telemetry: Telemetry
    metadata: Callable[[], dict[str, str]]
    data: Callable[[], Mapping[str, Any]]
    replies: ReplySubjects
    watched_at: str = ""
    accepting: bool = False
    _serial: int = 0
    _subscriptions: list[Any] = field(default_factory=list)
    _control: list[Any] = field(default_factory=list)
    _no_listener: str = ""

    async def start(self) -> None:
        """Subscribe to everything and return once the server knows of it."""
        routes = list(served_routes(self.handlers, self.worker_id))
        self._no_listener = f"{WORKERS_INBOX}.{secrets.token_hex(16)}"  # callers see it: nothing else may come there
        self._control = [
            await self.nc.subscribe(f"{names.CANCEL}.*", cb=self._on_cancel),
            await self.nc.subscribe(f"{self._no_listener}.*", cb=self._on_no_listener),
        ]
        for served in routes:
            accept = functools.partial(self._on_request, served)
            self._subscriptions.append(await self.nc.subscribe(served.route.subject, served.queue, cb=accept))
        figures = self.metadata, self.data
        discovery = Discovery(self.nc, self.worker_id, routes, *figures, self.replies, self.watched_at)
        self._control += await discovery.subscribe()
        await settled(self.nc)
        self.accepting = True

    async def _on_request(self, served: ServedRoute, msg: Msg) -> None:
        served.counts.requests += 1
        if not self.replies.admit(msg):
            served.counts.record(0, Malformed("no reply subject that may be answered"))
            return
        self._serial += 1
        timeout_s = self.in_flight.limits.default_timeout_s
        call = Call(self.nc, served.name, msg, self._serial, timeout_s, served.route.has_text_reply)
        if served.route.lasting:
            call.make_lasting()
        if served.route.every_worker:
            call.worker = self.worker_id
        refusal = call.headers.fault or self._read_caller(call) or self.in_flight.refusal(served, call)
        msg.data = b""  # nats-py keeps each subscription's last message
        if refusal:  # at once: under a flood that is most of the work
            await self._serve(served, call, refusal)
            return
        call.no_listener_subject = f"{self._no_listener}.{secrets.token_hex(16)}"
        self.in_flight.add(served, call)
        call.task = asyncio.create_task(self._run(served, call), name=f"{served.name}.{call.serial}")

    def _read_caller(self, call: Call) -> MLError | None:
        """Note who calls, and where to ask whether it still waits; the error if that subject is not allowed."""
        subject = call.headers.caller_subject or ""
        if call.reply.startswith(f"{IMPORTED}."):  # that subject is another account's, and here nobody listens to it
            return None
        if not subject or (self.replies.allow(subject) and subject != call.reply):
            call.caller_subject = subject
            caller_of = self.replies.user if call.lasting else self.replies.caller
            call.caller = caller_of(subject or call.reply)
            return None
        allowed = ", ".join(self.replies.prefixes)
        must = f"must be a subject below {allowed}, of at most {MOST_BYTES} bytes, and not the reply subject"
        return InvalidField(f"{names.CALLER} {must}")

    async def _run(self, served: ServedRoute, call: Call) -> None:
        call.running = True
        try:
            await self._serve(served, call)
        finally:
            self.in_flight.remove(served, call)

    async def _serve(self, served: ServedRoute, call: Call, refusal: MLError | None = None) -> None:
        try:
            if error := refusal or call.ended_by or await self._outcome(served, call):
                await call.fail(error)
            if not served.route.every_worker:  # others may still answer
                await call.close()
        except ReplyLost as error:
            call.answered = Internal(str(error))
            log.warning("reply.lost", route=served.name, request_id=call.headers.request_id, error=str(error))
        finally:
            self._record(served, call)

    async def _outcome(self, served: ServedRoute, call: Call) -> MLError | None:
        """Answer the call, or return the error to answer with."""
        try:
            async with asyncio.timeout_at(None if call.lasting else call.deadline) as timer:
                call.timer = timer
                with self.telemetry.traced(call):
                    await self._answer(served, call)
        except asyncio.CancelledError:
            return call.ended_by or Unavailable("this worker is shutting down")
        except ReplyLost:
            raise
        except Exception as error:
            if timer.expired():
                return DeadlinePassed("the deadline passed before the answer was ready")
            known = to_wire(error)
            if known is None:
                log.exception("request.failed", route=call.route, request_id=call.headers.request_id)
            return known or Internal(INTERNAL)
        return None

    async def _answer(self, served: ServedRoute, call: Call) -> None:
        route = served.route
        fields = codec.read(call.take_body(), call.headers.request_type, route.request, route.text_field)
        if "stream" in route.request.model_fields:
            call.take_stream(fields)
        request = codec.validate(fields, route.request)
        if route.frames:
            await send_stream(call, served.answer(request, call))
        elif call.framed:
            raise Malformed(f"{route.subject} does not stream; leave {names.STREAM} out")
        else:
            await call.answer(await served.answer(request, call))

    def _record(self, served: ServedRoute, call: Call) -> None:
        seconds = 0.0 if call.lasting else asyncio.get_running_loop().time() - call.received
        error = call.answered if isinstance(call.answered, MLError) else None
        served.counts.record(int(seconds * 1e9), error)
        self.telemetry.ended(call, seconds, error)
        if error is None and not call.lasting:
            self.in_flight.service_s += 0.05 * (seconds - self.in_flight.service_s)

    async def _on_cancel(self, msg: Msg) -> None:
        self.in_flight.cancel(msg.subject.removeprefix(f"{names.CANCEL}."))

    async def _on_no_listener(self, msg: Msg) -> None:
        back_s = asyncio.get_running_loop().time() - self.nc.reconnected_at
        if back_s > RETURN_S and (msg.headers or {}).get("Status") == "503":
            self.in_flight.end_unheard(msg.subject)

    async def ask_callers(self) -> None:
        """Ask for ever, at intervals, whether callers are still there: each once, however many requests it has."""
        while True:
            await asyncio.sleep(ASK_S)
            callers = {call.caller_subject: call for call in self.in_flight.calls.values() if call.caller_subject}
            for call in callers.values() if self.nc.is_connected else ():
                with suppress(ReplyLost):
                    await call.ask_caller()

    def on_denied(self, subject: str) -> None:
        """The server refused a publish: end the work for that answer. subject: in lower case."""
        if self.replies.include(subject):
            self.telemetry.denied()
        for call in list(self.in_flight.calls.values()):
            if call.reply.lower() == subject:
                call.deny()
            elif call.caller_subject.lower() == subject:
                call.caller_subject = ""  # it cannot be asked there

    async def drain(self, grace_s: float) -> None:
        """Take no more requests, finish those in flight, and answer with 503 those that the grace time leaves."""
        self.accepting = False
        until = asyncio.get_running_loop().time() + grace_s
        log.info("endpoint.draining", in_flight=len(self.in_flight.calls), grace_s=grace_s)
        try:
            await self.nc.fence(self._subscriptions)
        except (NatsError, OSError) as error:
            log.warning("endpoint.fence_failed", error=str(error))
        await self.in_flight.finish(grace_s)
        await self.nc.held.sent(max(0.0, until - asyncio.get_running_loop().time()))
        if not self.nc.is_closed:
            for subscription in self._control:
                await subscription.unsubscribe()
        log.info("endpoint.drained")


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
