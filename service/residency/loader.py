"""How this worker loads models, and the threads that do it.

torch takes seconds to import, and is imported with the first model.
"""

import asyncio
import functools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, Unpack

from models.catalogue import Dtype, GraphDtype, ModelSpec, Quantization
from models.errors import ModelError, OverBudget, UnknownArchitecture
from models.generation.types import EngineLimits
from models.loading import memory
from models.loading.load_cache import LoadCache
from models.loading.support import require_not_refused
from models.weights import hub
from models.weights.versions import version_folder

from ..runtime.panics import panics_as_errors
from ..served_model import Model, facts_of
from ..settings import Settings

if TYPE_CHECKING:
    from models.loading.loader import LoadOptions
    from models.sandbox.probe import Probe

ArgTs = TypeVarTuple("ArgTs")
ResultT = TypeVar("ResultT")
OnStep = Callable[[str], None]

CHUNK_TOKENS = {"cpu": 128, "cuda": 1024}
"""Tokens of prompts in a step: about as long as anybody should wait for the next token of a running text."""
KV_SHARE = 8
LEAST_KV_BYTES = 64 * 2**20
"""Keys and values take at most an eighth of the memory for models, or this much where that is more."""
NICENESS = 10


@dataclass(frozen=True, slots=True)
class LoadOverrides:
    """How an operator wants a model loaded. None: as its entry and the settings say; version None: the live one."""

    dtype: Dtype | None = None
    quantization: Quantization | None = None
    version: str | None = None
    pinned: bool = False


class ModelLoader:
    """The parts of a load that block: `prepare` runs on the device's thread, most others on a loader thread.

    on_step: called with each step of a load, such as "downloading minilm".
    """

    def __init__(self, settings: Settings, on_step: OnStep = lambda step: None) -> None:
        self._settings = settings
        self.on_step = on_step
        self._verdicts: dict[str, ModelError | None] = {}

    def prepare(self) -> None:
        """Set up the calling thread to compute with all its threads."""
        from models.loading.device import configure_threads

        configure_threads(self._threads)

    def fetch(self, spec: ModelSpec, overrides: LoadOverrides) -> None:
        """Download a model that is not on this machine, from any thread.

        Raises ModelError, before the download if the model's configuration already shows that it cannot be served.
        """
        options = self.options(spec, overrides)
        graph = self.graph(spec, options)
        if not hub.is_present(spec, graph):
            require_not_refused(spec)
            self._require_room_by_configuration(spec, options)
            self.on_step(f"downloading {spec.id}")
            hub.locate(spec, True, graph)

    def _require_room_by_configuration(self, spec: ModelSpec, options: "LoadOptions") -> None:
        """Raises OverBudget if the weights would not fit alone; nothing where their size is not known yet."""
        from models.loading.device import pick_device, pick_dtype
        from models.loading.footprint import footprint

        device = pick_device(options.device)
        precision = options.quantization or spec.quantization or pick_dtype(options.dtype or spec.dtype, device)
        with suppress(UnknownArchitecture):
            needed = footprint(spec).sizes.get(self.graph(spec, options) or precision, 0)
            if needed > (budget := self.budget_bytes(str(device))):
                raise OverBudget(spec.id, needed, budget, 0)

    def graph(self, spec: ModelSpec, options: "LoadOptions") -> GraphDtype | None:
        """Which ONNX graph is loaded, None where torch runs the model. Raises ModelError."""
        from models.loading.loader import graph_dtype

        return graph_dtype(spec, options)

    def options(self, spec: ModelSpec, overrides: LoadOverrides) -> "LoadOptions":
        """How a model is loaded. Raises UnknownVersion."""
        from models.loading.loader import LoadOptions

        settings = self._settings
        return LoadOptions(
            device=settings.device,
            dtype=overrides.dtype or (None if settings.dtype == "auto" else settings.dtype),
            quantization=overrides.quantization,
            folder=version_folder(settings.checkpoints_dir, spec.id, overrides.version),
            download=False,
            threads=self._threads,
            memory_limit_bytes=self._limit_bytes,
            cache=LoadCache(settings.cache_dir),
        )

    def probe_for(self, spec: ModelSpec, options: "LoadOptions") -> "Probe | None":
        """What has to be opened in a process of its own before this is loaded; None if nothing. Raises ModelError."""
        from models.sandbox.probe import needed

        probe = needed(spec, options)
        if probe is None or probe.key not in self._verdicts:
            return probe
        if error := self._verdicts[probe.key]:
            raise error.with_traceback(None)
        return None

    def run_probe(self, probe: "Probe") -> None:
        """Open it there. A refusal is remembered as long as this worker runs. Raises ModelError."""
        self.on_step(f"{probe.spec.id}: opening the model in a process of its own, once")
        try:
            probe.run(self._settings.memory.load_timeout_s)
        except ModelError as error:
            self._verdicts[probe.key] = error
            raise
        self._verdicts[probe.key] = None
        LoadCache(self._settings.cache_dir).keep_probed(probe.key)

    def expected(self, spec: ModelSpec, options: "LoadOptions") -> tuple[str, int]:
        """Where a model will be loaded, and about how many bytes it will take there. Raises ModelError."""
        from models.loading.loader import expected_bytes

        device, memory_bytes = expected_bytes(spec, options, lambda step: self.on_step(f"{spec.id}: {step}"))
        if spec.kind == "generation":
            memory_bytes += self._expected_kv_bytes(spec, options, device)
        return device, memory_bytes

    def require_room(self, spec: ModelSpec, options: "LoadOptions") -> None:
        """Raises OverBudget if a model would not fit alone, and what `expected` raises."""
        device, needed = self.expected(spec, options)
        if needed > (budget := self.budget_bytes(device)):
            raise OverBudget(spec.id, needed, budget, 0)

    def load(self, spec: ModelSpec, options: "LoadOptions") -> Model:
        """Load a model, computing with one thread alone. Raises ModelError."""
        self.on_step("importing torch")
        from models.loading import loader
        from models.loading.device import configure_threads, device_errors

        configure_threads(1)
        if spec.kind == "embedding":
            return loader.load(spec, options, lambda step: self.on_step(f"{spec.id}: {step}"))
        from models.generation.engine import Engine

        loaded = loader.load_generator(spec, options, lambda step: self.on_step(f"{spec.id}: {step}"))
        limits = self._engine_limits(
            loaded.facts.device, loaded.kv_shape.token_bytes * loaded.facts.max_tokens, spec.kv_gb
        )
        with device_errors(loaded.facts.device, spec.id):
            return Engine(loaded, limits)

    def _expected_kv_bytes(self, spec: ModelSpec, options: "LoadOptions", device: str) -> int:
        """What keys and values will take at most, as fp32."""
        from torch import float32

        from models.generation.architecture import context_of, kv_shape, served_config
        from models.loading.loader import located

        config = served_config(*located(spec, options))
        context_bytes = kv_shape(config, float32).token_bytes * context_of(spec, config)
        return self._engine_limits(device, context_bytes, spec.kv_gb).kv_bytes

    def _engine_limits(self, device: str, context_bytes: int, own_gb: float | None = None) -> EngineLimits:
        """The limits of an engine.

        context_bytes: keys and values of one completion of full length. own_gb: gigabytes for all keys and values that
        the model's entry names. If neither entry nor settings name any: what all completions that run at once could
        fill, and one more for cached prompts, within the device's share.
        """
        generation = self._settings.generation
        share = max(LEAST_KV_BYTES, self.budget_bytes(device) // KV_SHARE)
        stated_gb = own_gb or generation.kv_gb
        useful = (generation.max_running + 1) * context_bytes
        return EngineLimits(
            max_running=generation.max_running,
            waiting=generation.waiting,
            waiting_tokens=generation.waiting_tokens,
            kv_bytes=round(stated_gb * 1e9) if stated_gb else min(share, useful),
            chunk_tokens=generation.chunk_tokens or CHUNK_TOKENS[device.partition(":")[0]],
        )

    def abandon(self) -> None:
        """A load hangs: let others read their weights."""
        from models.loading.reading import READ_LOCK

        READ_LOCK.abandon()

    def drop(self, model: Model) -> None:
        """Close a model that never served."""
        model.close()
        self.give_back(facts_of(model).device)

    def give_back(self, device: str) -> None:
        """Return the memory of closed models to the system."""
        memory.give_back(device)

    def budget_bytes(self, device: str) -> int:
        """What models may take on a device."""
        return self._limit_bytes or memory.default_budget(device)

    @property
    def _limit_bytes(self) -> int | None:
        gigabytes = self._settings.memory.budget_gb
        return int(gigabytes * 1e9) if gigabytes else None

    @property
    def _threads(self) -> int:
        from models.loading.device import default_threads

        return self._settings.threads or default_threads()


class StillRunning(Exception):
    """A load that was given up has not ended."""


class LoaderThreads:
    """Runs each function in a thread of its own, at low priority; one that hangs blocks no other, nor the exit.

    Each computes with one thread: a second OpenMP team would compete with the device thread's.
    """

    def __init__(self) -> None:
        self._bounded: set[str] = set()

    async def run(self, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs) -> ResultT:
        """The function's result, or its exception. A caller that is cancelled does not stop it."""
        return await asyncio.wrap_future(self._start(function, *arguments))

    async def run_within(
        self, seconds: float, name: str, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs
    ) -> ResultT:
        """The same; after this many seconds the function is given up, and goes on alone.

        Raises TimeoutError, and StillRunning while one of this name runs.
        """
        if name in self._bounded:
            raise StillRunning
        self._bounded.add(name)
        future = self._start(function, *arguments)
        future.add_done_callback(lambda _: self._bounded.discard(name))
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)

    def _start(self, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs) -> Future[ResultT]:
        future: Future[ResultT] = Future()
        future.set_running_or_notify_cancel()  # what runs is not stopped
        call = functools.partial(function, *arguments)
        threading.Thread(target=_run, args=(call, future), name="loader", daemon=True).start()
        return future


def _run(call: Callable[[], ResultT], future: Future[ResultT]) -> None:
    _lower_priority()
    try:
        with panics_as_errors("the libraries"):  # as on a broken file
            future.set_result(call())
    except Exception as error:
        future.set_exception(error)


def _lower_priority() -> None:
    """On Linux a thread has its own priority; elsewhere it has the process's, which stays as it is."""
    if sys.platform.startswith("linux"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
