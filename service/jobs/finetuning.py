"""Wires the parts of fine-tuning, as app.py wires those that serve. torch is imported when the first job needs it."""

import functools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog
from nats.aio.client import Client

from models.catalogue import ModelSpec
from models.training.run import TrainingOptions
from subjects import names
from subjects.finetune import FinetuneRequest

from ..bus.connection import connected
from ..bus.embedded import EmbeddedServer
from ..bus.settings import NatsSettings
from ..endpoint.reply_subject import ReplySubjects
from ..endpoint.route import Handler
from ..handlers.finetune import FinetuneHandlers
from ..residency.first_models import first_models
from ..residency.manager import ModelManager
from ..runtime.activity import Activity
from ..settings import Settings
from . import setup
from .bucket import NotSetUp
from .fleet.rollout import Rollout
from .nightly import nightly
from .objects import Objects
from .promotion import Promotion
from .pruning import Pruning
from .queue import JobQueue
from .runner import Ending, JobRunner
from .runs import Runs
from .schedule import schedule_of
from .stages import Stages
from .step_process import Steps
from .store import JobStore
from .submission import Submission
from .sweep import Sweep
from .uploads import Uploads
from .watch import JobWatch

log = structlog.get_logger(__name__)


async def set_up(server: EmbeddedServer) -> None:
    """Create the streams and buckets on an embedded server. Raises BusError."""
    async with connected(server.settings("admin")) as admin:
        try:
            done = await setup.create(admin)
        except NotSetUp as error:  # a user's own configuration without JetStream
            log.warning("jobs.not_set_up", reason=str(error))
        else:
            log.info("jobs.set_up", done=done)


class Finetuning:
    """All parts of fine-tuning in a worker. worker: its id. Raises BadSettings for an impossible nightly run."""

    def __init__(self, nc: Client, nats: NatsSettings, manager: ModelManager, settings: Settings, worker: str) -> None:
        self._nc = nc
        self._settings = settings
        self._manager = manager
        self._worker = worker
        self._store = JobStore(nc)
        self._schedule = schedule_of(settings, manager.catalogue, manager.defaults.get("embedding", ""))
        self._submission = Submission(nc, self._store, manager.catalogue, manager.defaults, settings, _check_trainable)
        connect = functools.partial(connected, nats)
        first = set(first_models(manager.catalogue, settings))
        self.rollout = Rollout(nc, manager, connect, settings.checkpoints_dir, first=first)
        self.promotion = Promotion(self._store, manager.catalogue, self.rollout)

    def handlers(self) -> dict[str, Handler]:
        """Its handlers, by subject."""
        uploads, watch = Uploads(Objects(self._nc, names.DATA_BUCKET)), JobWatch(self._nc, self._store)
        user_of = ReplySubjects(self._settings.reply_prefixes).user
        return FinetuneHandlers(self._submission, self._store, watch, uploads, user_of).handlers()

    @asynccontextmanager
    async def working(self, serving: Activity) -> AsyncIterator[None]:
        """Runs jobs while the context is open, if the settings enable it; leaving hands the present one back.

        serving: what the steps of jobs give way to.
        """
        if not self._settings.finetune.enabled:
            yield
            return
        pruning = Pruning(self._settings, self._store, self.rollout.live, self.rollout.checkpoints)
        runner = JobRunner(self._nc, self._store, self._stages(serving), self._worker, self._settings.finetune.attempts)

        async def handle(request: FinetuneRequest) -> Ending:
            ending = await runner.handle(request)
            await pruning.run()
            return ending

        async with AsyncExitStack() as stack:
            await stack.enter_async_context(JobQueue(self._nc, self._store).running(handle))
            await stack.enter_async_context(Sweep(self._nc, self._store).running())
            await stack.enter_async_context(nightly(self._schedule, self._submission, pruning.run))
            yield

    def _stages(self, serving: Activity) -> Stages:
        settings, catalogue = self._settings, self._manager.catalogue
        threads = settings.finetune.threads or settings.threads or _default_threads()
        runs, steps = Runs(settings, self._nc, _training_bytes, threads), Steps(threads, serving=serving)
        kept = settings.checkpoints_dir
        return Stages(self._store, catalogue, kept, runs, steps, self._manager.reservations, self.rollout)


def _check_trainable(entry: ModelSpec, base: Path) -> None:
    from models.training.fit.cost import check_trainable

    check_trainable(entry, base)


def _training_bytes(entry: ModelSpec, base: Path, options: TrainingOptions) -> tuple[str, int]:
    from models.training.fit.cost import training_bytes

    return training_bytes(entry, base, options)


def _default_threads() -> int:
    from models.loading.device import default_threads

    return default_threads()
