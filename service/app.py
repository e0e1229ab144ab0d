"""The worker process, put together from its parts. Contexts nest: leaving them is the shutdown order."""

import asyncio
import functools
import gc
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
from nats.nuid import NUID

from models.catalogue import FORMS, load_catalogue
from models.loading.memory import bound_arenas

from .bus.causes import Denied
from .bus.client import BusClient
from .bus.connection import connected
from .bus.embedded import EmbeddedServer, EmbeddedSettings, embedded_server
from .bus.errors import NotPermitted
from .bus.settings import NatsSettings
from .endpoint.endpoint import Endpoint, serving
from .endpoint.in_flight import InFlight, Limits
from .endpoint.reply_subject import JETSTREAM_INBOX, ReplySubjects
from .gateway.beside import gateway_beside
from .handlers.embed import EmbedHandlers
from .handlers.generate import GenerateHandlers
from .handlers.models import ModelHandlers
from .handlers.schema import SchemaHandlers
from .handlers.tokenize import TokenizeHandlers
from .jobs.finetuning import Finetuning, set_up
from .residency import overview
from .residency.first_models import first_models, load_first, retry_missing
from .residency.loader import ModelLoader, OnStep
from .residency.manager import ModelManager, model_manager
from .runtime.background import Background, background_task
from .runtime.device_thread import DeviceThread
from .runtime.http_port import Health, serve_http
from .runtime.self_watch import SelfWatch
from .runtime.stop import Stop, StoppedEarly, end_on_signals, end_soon, unless_stopped
from .served_model import Facts, Model, facts_of
from .settings import BadSettings, Settings
from .telemetry import Telemetry, configured_tracer

log = structlog.get_logger(__name__)

LEAVING_S = 5.0
"""The part of the grace time that is kept for closing connections and stopping a server, after the last answer."""


@dataclass(frozen=True, slots=True)
class Started:
    """A worker that answers. server, gateway: what it started besides: a nats-server, an HTTP gateway at this url."""

    nats: NatsSettings
    server: EmbeddedServer | None
    models: Sequence[Facts]
    metrics_port: int | None
    manager: ModelManager
    metrics_host: str = "127.0.0.1"
    gateway: str | None = None


async def serve(
    settings: Settings,
    *,
    loaded: Sequence[Model] | None = None,
    loader: ModelLoader | None = None,
    on_step: OnStep = lambda step: None,
    on_ready: Callable[[Started], None] = lambda started: None,
) -> int:
    """Run a worker until it is told to stop -> exit code.

    loaded: models to serve instead of those that the settings name. loader: loads models, in place of one made from the
    settings. on_step: called with each step of the start. Raises BusError or ModelError if it cannot start.
    """
    bound_arenas()
    stop = Stop(max(settings.grace_s, LEAVING_S))
    end_on_signals(stop)
    code = 1
    try:
        with suppress(StoppedEarly):
            async with worker(settings, stop, loaded, on_step, loader) as started:
                on_ready(started)
                await stop.requested.wait()
        code = stop.code
        log.info("worker.stopped", code=code)
    finally:
        end_soon(code)
    return code


@asynccontextmanager
async def worker(
    settings: Settings,
    stop: Stop,
    loaded: Sequence[Model] | None = None,
    on_step: OnStep = lambda step: None,
    loader: ModelLoader | None = None,
) -> AsyncIterator[Started]:
    """A worker that answers while the context is open; leaving it drains. See `serve`."""
    catalogue = load_catalogue(settings.catalogue)
    first_models(catalogue, settings)  # an unknown model is an error before anything starts
    telemetry, health = Telemetry(configured_tracer()), Health()
    async with AsyncExitStack() as stack:
        port = await _http_port(settings, telemetry, health, stack)
        server = await _server(settings, stack, stop, on_step)
        nats = server.settings("worker") if server else nats_settings(settings)
        on_step("connecting to NATS")
        denials = _Denials()
        nc = await stack.enter_async_context(connected(nats, on_closed=stop.fail, on_denied=denials.note))
        gateway = await stack.enter_async_context(gateway_beside(settings, server, nats))
        device = stack.enter_context(closing(DeviceThread()))
        loader = loader or ModelLoader(settings, on_step)
        manager = model_manager(catalogue, settings, loader, device, telemetry, stop.fail)
        await stack.enter_async_context(manager.running())
        worker_id = NUID().next().decode()
        finetuning = Finetuning(nc, nats, manager, settings, worker_id)
        if server:
            await set_up(server)
        await unless_stopped(stop, stack.enter_async_context(finetuning.rollout.running()))
        if loaded:
            _publish(manager, loaded)
        else:
            await unless_stopped(stop, device.run(loader.prepare))
            await unless_stopped(stop, load_first(manager, settings))
            await stack.enter_async_context(_retrying_missing(manager, settings))
        gc.freeze()  # what is loaded stays: later collections need not walk through it
        watch = SelfWatch(nc, worker_id, functools.partial(stop.fail, within_s=LEAVING_S))
        endpoint = _endpoint(nc, manager, finetuning, settings, telemetry, worker_id, watch.inbox)
        health.not_ready = functools.partial(_not_ready, nc, endpoint, manager)
        denials.on_publish, denials.on_any = endpoint.on_denied, watch.on_denied
        await stack.enter_async_context(serving(endpoint, max(0.0, settings.grace_s - LEAVING_S)))
        await stack.enter_async_context(background_task(lambda closing: watch.run(), "self_watch"))
        await stack.enter_async_context(finetuning.working(device.activity))
        denials.require_none(nats.identity)
        present = [model.serves.facts for model in manager.registry]
        if gateway:
            stack.callback(gateway.stop)  # first of all
        url = gateway.url if gateway else None
        log.info("worker.ready", models={f.model: f.version for f in present}, metrics_port=port, gateway=url)
        loader.on_step = lambda step: log.info("model.step_began", step=step)
        yield Started(nats, server, present, port, manager, settings.metrics_host, url)


@asynccontextmanager
async def _retrying_missing(manager: ModelManager, settings: Settings) -> AsyncIterator[None]:
    """Try again, while the context is open, to load the models that could not be had at the start."""
    background = Background()
    background.spawn(retry_missing(manager, settings), "retry_missing")
    try:
        yield
    finally:
        await background.close()


def _publish(manager: ModelManager, loaded: Sequence[Model]) -> None:
    """Serve models that are loaded already; the first that takes a form of request is the default for it."""
    for model in reversed(loaded):
        facts = facts_of(model)
        forms = [form for form in FORMS if (form == "embedding") == (facts.kind == "embedding")]
        manager.defaults |= dict.fromkeys(forms, facts.model)
    for model in loaded:
        manager.publish(model)


@dataclass(slots=True)
class _Denials:
    """What the server refuses this worker. subscriptions: subjects of this service that it may not listen on.

    on_publish: called with a subject that it may not publish to; on_any: with any refused subject.
    """

    subscriptions: set[str] = field(default_factory=set)
    on_publish: Callable[[str], None] = lambda subject: None
    on_any: Callable[[str], None] = lambda subject: None

    def note(self, denied: Denied) -> None:
        self.on_any(denied.subject)
        if denied.operation == "publish":
            self.on_publish(denied.subject)
        elif not denied.subject.startswith("_inbox"):
            self.subscriptions.add(denied.subject)

    def require_none(self, identity: str) -> None:
        """Raises NotPermitted, with our own subjects first."""
        if self.subscriptions:
            ours_first = sorted(self.subscriptions, key=lambda subject: (not subject.startswith("ml."), subject))
            raise NotPermitted(identity, ", ".join(ours_first[:3]))


async def _server(settings: Settings, stack: AsyncExitStack, stop: Stop, on_step: OnStep) -> EmbeddedServer | None:
    """A server of our own, if the settings say so."""
    if not settings.embedded_nats:
        return None
    on_step("starting nats-server")
    monitor_port = settings.nats_monitor_port if settings.monitor else None
    own = EmbeddedSettings(data_dir=settings.data_dir, port=settings.nats_port, monitor_port=monitor_port)
    if settings.nats_config:
        own = own.model_copy(update={"conf": settings.nats_config})
    return await stack.enter_async_context(embedded_server(own, on_died=stop.fail))


def nats_settings(settings: Settings) -> NatsSettings:
    """How to reach the server that the settings, the NATS_* variables or a context name. Raises BadBusSettings."""
    nats = NatsSettings.from_env(os.environ, **({"url": settings.nats_url} if settings.nats_url else {}))
    # The server's answers to us must come where we answer nobody.
    answered = ReplySubjects(settings.reply_prefixes).allow(f"{nats.inbox_prefix}.x")
    return nats.model_copy(update={"inbox_prefix": JETSTREAM_INBOX}) if answered else nats


def _endpoint(
    nc: BusClient,
    manager: ModelManager,
    finetuning: Finetuning,
    settings: Settings,
    telemetry: Telemetry,
    worker_id: str,
    watched_at: str,
) -> Endpoint:
    registry, limits = manager.registry, settings.limits
    handlers = {
        **EmbedHandlers(manager).handlers(),
        **GenerateHandlers(manager, telemetry.generation).handlers(),
        **ModelHandlers(manager, worker_id, settings.checkpoints_dir, finetuning.promotion).handlers(),
        **finetuning.handlers(),
        **TokenizeHandlers(manager).handlers(),
        **SchemaHandlers().handlers(),
    }
    in_flight = InFlight(Limits(limits.requests, limits.request_bytes, limits.default_timeout_s, limits.watches))

    def figures() -> dict[str, Any]:
        return {**telemetry.figures(), "in_flight": len(in_flight.calls), **overview.figures(registry)}

    for name, help_text, read in overview.read_on_demand(in_flight, manager):
        telemetry.gauge(name, help_text, read)
    return Endpoint(
        nc=nc,
        worker_id=worker_id,
        handlers=handlers,
        in_flight=in_flight,
        telemetry=telemetry,
        metadata=lambda: overview.described(registry, manager.defaults, manager.missing),
        data=figures,
        replies=ReplySubjects(settings.reply_prefixes, telemetry.unanswerable),
        watched_at=watched_at,
    )


async def _http_port(settings: Settings, telemetry: Telemetry, health: Health, stack: AsyncExitStack) -> int | None:
    """Serve metrics and health until the stack closes -> the port; None if the settings want none.

    Raises BadSettings.
    """
    if settings.metrics_port < 0:
        return None
    host = settings.metrics_host
    try:
        port, close = await asyncio.to_thread(serve_http, host, settings.metrics_port, telemetry.registry, health)
    except OSError as error:
        raise BadSettings(f"metrics_host {host!r} cannot be listened on: {error.strerror}") from None
    stack.callback(close)
    return port


def _not_ready(nc: BusClient, endpoint: Endpoint, manager: ModelManager) -> Iterator[str]:
    """Why the worker takes no requests now, a clause each."""
    if not nc.is_connected:
        yield "not connected to NATS"
    if not endpoint.accepting:
        yield "not subscribed: it starts, or drains"
    for model in manager.missing.keys() & manager.defaults.values():
        yield str(manager.missing[model])
