"""The worker process: the only place where parts are wired. Contexts nest: leaving them is the shutdown order."""

import asyncio
import functools
import gc
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
from nats.aio.client import Client

from models.catalogue import ModelSpec, load_catalogue
from models.encoders.base import Encoder

from .batcher import Batcher
from .bus.causes import Denied
from .bus.connection import connected
from .bus.embedded import EmbeddedServer, EmbeddedSettings, embedded_server
from .bus.errors import NotPermitted
from .bus.settings import NatsSettings
from .config import Settings
from .device_thread import DeviceThread
from .embedder import Embedder
from .endpoint import Endpoint, Limits, serving
from .handlers.embed import EmbedHandlers
from .handlers.similarity import SimilarityHandlers
from .telemetry import Telemetry, configured_tracer
from .work import BatchLimits

log = structlog.get_logger(__name__)

BUDGET_TOKENS = {"cpu": 1024, "cuda": 16384}
OVERHEAD_TOKENS = {"cpu": 32, "cuda": 256}
WORKER_INBOX = "_INBOX_worker"
OnStep = Callable[[str], None]
ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class Stop:
    """Whether the process should end, and with which exit code."""

    code: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def ask(self) -> None:
        self.asked.set()

    def fail(self, reason: object) -> None:
        """End with a non-zero exit code, so that a supervisor starts the worker again."""
        log.error("worker.failed", reason=str(reason))
        self.code = 1
        self.asked.set()


class StoppedEarly(Exception):
    """The worker was told to stop while it was starting."""


@dataclass(frozen=True, slots=True)
class Started:
    """What is known once the worker answers. server: the nats-server that this process started, if it did."""

    nats: NatsSettings
    server: EmbeddedServer | None
    models: Sequence[Encoder]
    metrics_port: int | None


async def serve(
    settings: Settings,
    *,
    encoders: Sequence[Encoder] | None = None,
    on_step: OnStep = lambda step: None,
    on_ready: Callable[[Started], None] = lambda started: None,
) -> int:
    """Run a worker until it is told to stop -> exit code.

    encoders: loaded models, instead of those that the settings name. on_step hears what start-up is doing.
    Raises BusError or ModelError when it cannot start.
    """
    stop = Stop()
    _end_on_signals(stop)
    try:
        async with worker(settings, stop, encoders, on_step) as started:
            on_ready(started)
            await stop.asked.wait()
    except StoppedEarly:
        log.info("worker.stopped", code=stop.code)
        os._exit(stop.code)  # the thread that loads a model cannot be interrupted, and would keep the process
    log.info("worker.stopped", code=stop.code)
    return stop.code


@asynccontextmanager
async def worker(
    settings: Settings, stop: Stop, encoders: Sequence[Encoder] | None = None, on_step: OnStep = lambda step: None
) -> AsyncIterator[Started]:
    """A worker that answers while the context is open; leaving it drains. See `serve`."""
    catalogue = load_catalogue(settings.catalogue)
    specs = [catalogue.get(model) for model in settings.models]
    telemetry = Telemetry(configured_tracer())
    async with AsyncExitStack() as stack:
        server = await _server(settings, stack, stop, on_step)
        nats = server.settings("worker") if server else nats_settings(settings)
        on_step("connecting to NATS")
        silent: set[str] = set()
        nc = await stack.enter_async_context(
            connected(nats, on_closed=stop.fail, on_denied=lambda denied: _note_denied(denied, silent))
        )
        device = stack.enter_context(closing(DeviceThread()))
        # Loaded where they will run: OpenMP keeps a team of threads for each thread that computes, and with more of
        # them than cores they sleep and wake instead of spinning.
        loaded = encoders
        if not loaded:
            loaded = await _unless_stopped(stop, device.run(load_encoders, settings, specs, on_step))
        gc.freeze()  # what is loaded stays: later collections need not walk through it
        batchers = await stack.enter_async_context(_batching(loaded, device, settings, telemetry, stop))
        endpoint = _endpoint(nc, Embedder(catalogue, batchers), settings, telemetry)
        port = _serve_metrics(settings, telemetry, stack)
        await stack.enter_async_context(serving(endpoint, settings.grace_s))
        if silent:
            ours_first = sorted(silent, key=lambda subject: (not subject.startswith("ml."), subject))
            raise NotPermitted(nats.identity, tuple(ours_first[:3]))
        log.info("worker.ready", models={encoder.model: encoder.version for encoder in loaded}, metrics_port=port)
        yield Started(nats, server, loaded, port)


async def _unless_stopped(stop: Stop, starting: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of a step of the start. Raises StoppedEarly as soon as the worker is told to stop."""
    task, asked = asyncio.create_task(starting), asyncio.create_task(stop.asked.wait())
    await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if stop.asked.is_set():
        task.cancel()
        raise StoppedEarly
    return task.result()


def _note_denied(denied: Denied, silent: set[str]) -> None:
    """Keep the subjects of this service that the server does not let us listen on."""
    if denied.operation == "subscription" and not denied.subject.startswith("_inbox"):
        silent.add(denied.subject)


def _end_on_signals(stop: Stop) -> None:
    """The first signal drains; a second one ends at once."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.asked.is_set():
            os._exit(130)
        stop.ask()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)


async def _server(settings: Settings, stack: AsyncExitStack, stop: Stop, on_step: OnStep) -> EmbeddedServer | None:
    """A server of our own, where that was asked for and no other is named."""
    if not settings.embedded_nats or settings.nats_url or os.environ.get("NATS_URL"):
        return None
    on_step("starting nats-server")
    own = EmbeddedSettings(data_dir=settings.data_dir, port=settings.nats_port, monitor_port=settings.nats_monitor_port)
    if settings.nats_config:
        own = own.model_copy(update={"conf": settings.nats_config})
    return await stack.enter_async_context(embedded_server(own, on_died=stop.fail))


def nats_settings(settings: Settings) -> NatsSettings:
    """How to reach the server that the settings, the NATS_* variables or a context name. Raises BadBusSettings."""
    nats = NatsSettings.from_env(os.environ, **({"url": settings.nats_url} if settings.nats_url else {}))
    # The worker's role may listen on inboxes of its own only (nats-server.conf); without roles any prefix will do.
    return nats.model_copy(update={"inbox_prefix": WORKER_INBOX}) if nats.inbox_prefix == "_INBOX" else nats


def load_encoders(settings: Settings, specs: Sequence[ModelSpec], on_step: OnStep) -> list[Encoder]:
    """The models that the settings name; blocks for seconds. Raises ModelError."""
    # torch takes seconds to import: only a process that loads models pays for it.
    on_step("importing torch")
    from models.device import configure_threads, default_threads
    from models.loader import load

    configure_threads(settings.threads or default_threads())
    dtype = None if settings.dtype == "auto" else settings.dtype
    encoders = []
    for spec in specs:
        on_step(f"loading {spec.id}")
        encoder = load(spec, settings.device, dtype, on_step)
        log.info("model.loaded", model=spec.id, version=encoder.version, device=encoder.device, dtype=encoder.dtype)
        for note in encoder.notes:
            log.warning("model.noted", model=spec.id, note=note)
        encoders.append(encoder)
    return encoders


@asynccontextmanager
async def _batching(
    encoders: Sequence[Encoder], device: DeviceThread, settings: Settings, telemetry: Telemetry, stop: Stop
) -> AsyncIterator[list[Batcher]]:
    """A running batcher for each model; all models share the device's thread."""
    pool = ThreadPoolExecutor(2 * len(encoders), thread_name_prefix="tokenizer")  # one for each lane
    batchers = [
        Batcher(encoder, device, pool, _batch_limits(settings, encoder.device), telemetry) for encoder in encoders
    ]
    tasks = [asyncio.create_task(batcher.run(), name=f"batcher.{batcher.encoder.model}") for batcher in batchers]
    for task in tasks:
        task.add_done_callback(functools.partial(_end_with, stop))
    try:
        yield batchers
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        pool.shutdown(wait=False, cancel_futures=True)


def _end_with(stop: Stop, task: asyncio.Task[None]) -> None:
    """A batcher that dies takes the worker with it: nobody would answer its callers."""
    if not task.cancelled() and (error := task.exception()):
        log.error("batcher.died", task=task.get_name(), exc_info=error)
        stop.fail(error)


def _batch_limits(settings: Settings, device: str) -> BatchLimits:
    kind = device.partition(":")[0]
    batch, limits = settings.batch, settings.limits
    return BatchLimits(
        budget_tokens=batch.budget_tokens or BUDGET_TOKENS[kind],
        overhead_tokens=OVERHEAD_TOKENS[kind] if batch.overhead_tokens is None else batch.overhead_tokens,
        queue_texts=limits.queue_texts,
        queue_tokens=limits.queue_tokens,
    )


def _endpoint(nc: Client, embedder: Embedder, settings: Settings, telemetry: Telemetry) -> Endpoint:
    def figures() -> dict[str, Any]:
        texts, tokens = embedder.queued()
        return {**telemetry.figures(), "in_flight": len(endpoint.calls), "queued_texts": texts, "queued_tokens": tokens}

    limits = settings.limits
    endpoint = Endpoint(
        nc=nc,
        routes=[*EmbedHandlers(embedder).routes(), *SimilarityHandlers(embedder).routes()],
        limits=Limits(limits.requests, limits.request_bytes, limits.default_timeout_s),
        observer=telemetry,
        metadata={"models": ",".join(embedder.batchers), "default_model": embedder.default, **embedder.described()},
        data=figures,
    )
    telemetry.gauge("mlbus_requests_in_flight", "Requests admitted and not yet answered", lambda: len(endpoint.calls))
    telemetry.gauge("mlbus_request_bytes_in_flight", "Bytes of their bodies", lambda: endpoint.bytes_in_flight)
    telemetry.gauge("mlbus_queued_texts", "Texts waiting or running", lambda: embedder.queued()[0])
    telemetry.gauge("mlbus_queued_tokens", "Tokens waiting or running", lambda: embedder.queued()[1])
    return endpoint


def _serve_metrics(settings: Settings, telemetry: Telemetry, stack: AsyncExitStack) -> int | None:
    if settings.metrics_port < 0:
        return None
    port, close = telemetry.serve(settings.metrics_port)
    stack.callback(close)
    return port
