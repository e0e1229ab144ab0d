"""The work queue of jobs: messages are pulled one at a time, kept alive while the job runs, and acknowledged."""

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

from ..runtime.background import background_task
from .bucket import NotSetUp
from .retry import TROUBLE, retry_while_down
from .runner import Ending
from .setup import CONSUMER
from .store import JobStore
from .submission import digest_of

log = structlog.get_logger(__name__)

SETTLE_S = 60.0
UNREADABLE_TRIES = 5


@dataclass(frozen=True, slots=True)
class QueueTimes:
    """Intervals of the queue, in seconds.

    heartbeat_s: between two signs of progress to the server, well below the consumer's ack_wait. fetch_s: the time-out
    of a pull; one that was lost in a restart of the server is repeated after it. retry_s: the delay before a job is
    delivered again. setup_s: between two checks for a queue that does not exist.
    """

    heartbeat_s: float = 20.0
    fetch_s: float = 10.0
    retry_s: float = 2.0
    setup_s: float = 30.0


Handle: TypeAlias = Callable[[FinetuneRequest], Awaitable[Ending]]


@dataclass(frozen=True, slots=True)
class JobQueue:
    """A worker's end of the queue that all workers share."""

    nc: Client
    store: JobStore
    times: QueueTimes = QueueTimes()

    def running(self, handle: Handle) -> AbstractAsyncContextManager[None]:
        """Handles one job after the other while the context is open, whatever fails. Leaving it hands back the
        current one."""
        return background_task(lambda closing: self._run(closing, handle), "jobs")

    async def _run(self, closing: asyncio.Event, handle: Handle) -> None:
        warned = False
        while not closing.is_set():
            try:
                await self.nc.jetstream().consumer_info(names.JOBS_STREAM, CONSUMER)
                await self._take_all(closing, handle)
            except (NotFoundError, ServiceUnavailableError, NotSetUp):
                if not warned:
                    log.warning("jobs.not_set_up", reason=str(NotSetUp()))
                warned = True
                await asyncio.sleep(self.times.setup_s)
            except TROUBLE as error:
                log.warning("jobs.server_away", error=repr(error))
                await asyncio.sleep(self.times.retry_s)
            except Exception:
                log.exception("jobs.broke")
                await asyncio.sleep(self.times.retry_s)

    async def _take_all(self, closing: asyncio.Event, handle: Handle) -> None:
        """Take jobs until the connection was lost once: the subscription may not survive that."""
        connections = self.nc.stats["reconnects"]
        pull = await self.nc.jetstream().pull_subscribe_bind(CONSUMER, stream=names.JOBS_STREAM)
        try:
            while self.nc.stats["reconnects"] == connections and not closing.is_set():
                try:
                    [msg] = await pull.fetch(1, timeout=self.times.fetch_s)
                except TimeoutError:
                    continue
                if await self._is_from_the_stream(msg):
                    await self._settle(msg, handle)
                else:  # and nothing is sent to its reply subject
                    log.error("jobs.message_forged", reply=msg.reply[:200], bytes=len(msg.data))
        finally:
            with suppress(*TROUBLE):
                await pull.unsubscribe()

    async def _is_from_the_stream(self, msg: Msg) -> bool:
        """Whether the consumer has delivered it and nobody has acknowledged it: anybody could send to our inbox."""
        try:
            metadata = msg.metadata
        except (NotJSMessageError, ValueError):
            return False
        consumer: ConsumerInfo = await retry_while_down(
            lambda: self.nc.jetstream().consumer_info(names.JOBS_STREAM, CONSUMER)
        )
        if (metadata.stream, metadata.consumer) != (names.JOBS_STREAM, CONSUMER):
            return False
        acknowledged, delivered = consumer.ack_floor, consumer.delivered
        if acknowledged is None or delivered is None:
            return False
        return acknowledged.stream_seq < metadata.sequence.stream <= delivered.stream_seq

    async def _settle(self, msg: Msg, handle: Handle) -> None:
        try:
            async with background_task(lambda closing: self._beat(msg), "jobs.heartbeat"):
                ending = await self._handle(msg, handle)
        except asyncio.CancelledError:
            await _nak(msg)
            raise
        except Exception:
            log.exception("job.broke")
            ending = Ending.AGAIN
        match ending:
            case Ending.OVER:
                await _confirmed(msg.ack_sync)
            case Ending.DROPPED:
                await _confirmed(msg.term)
            case Ending.AGAIN:
                await _nak(msg, self.times.retry_s)
            case Ending.LOST:
                pass  # the message is another worker's now

    async def _handle(self, msg: Msg, handle: Handle) -> Ending:
        try:
            request = FinetuneRequest.model_validate_json(msg.data)
        except ValidationError as error:
            log.error("job.unreadable", faults=error.error_count(), bytes=len(msg.data))
            # A worker of a newer version may be able to read it, so it is tried a few times.
            return Ending.AGAIN if msg.metadata.num_delivered < UNREADABLE_TRIES else Ending.DROPPED
        if request.id is None or request.model is None:
            log.error("job.incomplete", job=request.id, model=request.model)
            return Ending.DROPPED
        job_id = request.id
        job = await retry_while_down(lambda: self.store.get(job_id))
        if job is None:
            log.error("job.unknown", job=request.id)
            return Ending.DROPPED
        if job.digest != digest_of(msg.data):
            log.error("job.not_its_message", job=job.id)
            return Ending.DROPPED
        return await handle(request)

    async def _beat(self, msg: Msg) -> None:
        """Send the server signs of progress."""
        while True:
            await asyncio.sleep(self.times.heartbeat_s)
            with suppress(*TROUBLE):
                await msg.in_progress()


async def _confirmed(settle: Callable[[], Awaitable[Any]]) -> None:
    """Acknowledge a message; if the server does not confirm it, the job comes again and ends at once."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            await retry_while_down(settle)


async def _nak(msg: Msg, delay_s: float | None = None) -> None:
    """Have the message delivered again, at the latest after ack_wait."""
    with suppress(*TROUBLE):
        await msg.nak(delay_s)
