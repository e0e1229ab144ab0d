"""The work queue of jobs: one message after the other is taken, kept as ours while it is worked on, and settled.

Owns the pull consumer's use. Knows of a job only whether it is over; what is done for it is the handler's.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NotJSMessageError
from nats.js.api import ConsumerInfo
from nats.js.errors import NotFoundError, ServiceUnavailableError
from pydantic import ValidationError

from subjects import names
from subjects.finetune import FinetuneRequest

from ..runtime.background import going_on, stopped
from .retry import TROUBLE, retry_while_down
from .runner import Ending
from .setup import CONSUMER
from .store import JobStore, NotSetUp
from .submission import digest_of

log = structlog.get_logger(__name__)

SETTLE_S = 60.0
UNREADABLE_TRIES = 5


@dataclass(frozen=True, slots=True)
class QueueTimes:
    """Times of the queue, in seconds.

    heartbeat_s: how often the server hears that a job is still worked on, well within the consumer's ack_wait.
    fetch_s: how long one pull waits; one that a restart of the server swallowed is made again after it.
    retry_s: how long a job waits that is to be begun again. setup_s: how often it looks for a queue that is not there.
    """

    heartbeat_s: float = 20.0
    fetch_s: float = 10.0
    retry_s: float = 2.0
    setup_s: float = 30.0


Handle: TypeAlias = Callable[[FinetuneRequest], Awaitable[Ending]]


class JobQueue:
    """The jobs of all workers, as this one takes them."""

    def __init__(self, nc: Client, store: JobStore, pace: QueueTimes | None = None) -> None:
        self._nc = nc
        self._js = nc.jetstream()
        self._store = store
        self._pace = pace or QueueTimes()

    def running(self, handle: Handle) -> AbstractAsyncContextManager[None]:
        """Job after job is taken while the context is open; nothing that goes wrong ends that. Leaving it hands back
        the one that is worked on."""
        return going_on(lambda closing: self._run(closing, handle), "jobs")

    async def _run(self, closing: asyncio.Event, handle: Handle) -> None:
        told = False
        while not closing.is_set():
            try:
                await self._js.consumer_info(names.JOBS_STREAM, CONSUMER)
                await self._take_all(closing, handle)
            except (NotFoundError, ServiceUnavailableError, NotSetUp):
                if not told:
                    log.warning("jobs.not_set_up", reason=str(NotSetUp()))
                told = True
                await asyncio.sleep(self._pace.setup_s)
            except TROUBLE as error:
                log.warning("jobs.server_away", error=repr(error))
                await asyncio.sleep(self._pace.retry_s)
            except Exception:
                log.exception("jobs.broke")
                await asyncio.sleep(self._pace.retry_s)

    async def _take_all(self, closing: asyncio.Event, handle: Handle) -> None:
        """Take jobs until the connection was lost once: a subscription may not live through that."""
        connections = self._nc.stats["reconnects"]
        pull = await self._js.pull_subscribe_bind(CONSUMER, stream=names.JOBS_STREAM)
        try:
            while self._nc.stats["reconnects"] == connections and not closing.is_set():
                try:
                    [msg] = await pull.fetch(1, timeout=self._pace.fetch_s)
                except TimeoutError:
                    continue
                if await self._is_from_the_stream(msg):
                    await self._settle(msg, handle)
                else:  # no word of ours goes to its reply subject
                    log.error("jobs.message_forged", reply=msg.reply[:200], bytes=len(msg.data))
        finally:
            with suppress(*TROUBLE):
                await pull.unsubscribe()

    async def _is_from_the_stream(self, msg: Msg) -> bool:
        """Whether it is one that the consumer has given out and nobody has settled, and not sent to us by somebody."""
        try:
            told = msg.metadata
        except (NotJSMessageError, ValueError):
            return False
        consumer: ConsumerInfo = await retry_while_down(lambda: self._js.consumer_info(names.JOBS_STREAM, CONSUMER))
        settled, given_out = consumer.ack_floor, consumer.delivered
        if (told.stream, told.consumer) != (names.JOBS_STREAM, CONSUMER) or settled is None or given_out is None:
            return False
        return settled.stream_seq < told.sequence.stream <= given_out.stream_seq

    async def _settle(self, msg: Msg, handle: Handle) -> None:
        try:
            ending = await self._kept(msg, handle)
        except asyncio.CancelledError:
            await _nak(msg)
            raise
        except Exception:
            log.exception("job.broke")
            ending = Ending.AGAIN
        match ending:
            case Ending.OVER:
                await _until_heard(msg.ack_sync)
            case Ending.DROPPED:
                await _until_heard(msg.term)
            case Ending.AGAIN:
                await _nak(msg, self._pace.retry_s)
            case Ending.LOST:
                pass  # the message is another worker's now

    async def _kept(self, msg: Msg, handle: Handle) -> Ending:
        """Handle a message, and have the server know all the while that we do."""
        beating = asyncio.create_task(self._beat(msg), name="jobs.heartbeat")
        try:
            return await self._handle(msg, handle)
        finally:
            await stopped(beating)

    async def _handle(self, msg: Msg, handle: Handle) -> Ending:
        try:
            request = FinetuneRequest.model_validate_json(msg.data)
        except ValidationError as error:
            log.error("job.unreadable", faults=error.error_count(), bytes=len(msg.data))
            # A worker of a newer version may read it, but nobody waits for that worker for ever.
            return Ending.AGAIN if msg.metadata.num_delivered < UNREADABLE_TRIES else Ending.DROPPED
        if request.id is None or request.model is None:
            log.error("job.incomplete", job=request.id, model=request.model)
            return Ending.DROPPED
        job_id = request.id
        job = await retry_while_down(lambda: self._store.get(job_id))
        if job is None:
            log.error("job.unknown", job=request.id)
            return Ending.DROPPED
        if job.digest != digest_of(msg.data):
            log.error("job.not_its_message", job=job.id)
            return Ending.DROPPED
        return await handle(request)

    async def _beat(self, msg: Msg) -> None:
        while True:
            await asyncio.sleep(self._pace.heartbeat_s)
            with suppress(*TROUBLE):
                await msg.in_progress()


async def _until_heard(settle: Callable[[], Awaitable[Any]]) -> None:
    """Settle a message for good; where the server does not hear it, the message comes again and is over at once."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            await retry_while_down(settle)


async def _nak(msg: Msg, delay_s: float | None = None) -> None:
    """Have the message delivered again; where the server does not hear it, that happens after ack_wait."""
    with suppress(*TROUBLE):
        await msg.nak(delay_s)
