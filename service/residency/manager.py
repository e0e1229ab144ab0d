"""The models of a worker while requests run: loaded on first use, leased, swapped."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar, cast

import structlog

from models.catalogue import Catalogue, Dtype, Form, Kind, ModelSpec, Quantization
from models.encoders.base import Encoder
from models.errors import ModelError, ModelUnavailable
from models.registry import LoadedModel, Registry
from subjects import names
from subjects.errors import InvalidField, NotFound

from ..embedding.embedder import Embedder
from ..embedding.pending_text import BatchLimits
from ..generation.generator import Generator
from ..runtime.background import Background, Change
from ..runtime.device_thread import DeviceThread
from ..served_model import Model, ServedModel, generates
from ..settings import Settings
from ..settings.serving import MemorySettings
from ..telemetry import Telemetry
from .load_queue import LoadQueue, LoadRequest
from .loader import ModelLoader
from .reservations import Evictor, Loaded, MemoryReservations

log = structlog.get_logger(__name__)

ServedT = TypeVar("ServedT", bound=ServedModel)
OTHER_KIND = {
    "embedding": f"gives vectors; ask {names.EMBED}",
    "generation": f"generates text; ask {names.GENERATE}",
}
"""Where to go with a model of each kind."""
BUDGET_TOKENS = {"cpu": 1024, "cuda": 16384}
OVERHEAD_TOKENS = {"cpu": 32, "cuda": 256}


class ModelManager:
    """The models of one worker.

    defaults: for each form of a request the id of the model for those that name none. serving: makes a served model of
    a loaded one. on_died: called when a model or a device has stopped working. memory: which models stay, and whether a
    request may have one loaded. missing: why a model that the settings name is not there, until it is.
    reservations: memory for work beside the models.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        loader: ModelLoader,
        serving: Callable[[Model], ServedModel],
        defaults: dict[Form, str],
        on_died: Callable[[BaseException], None],
        memory: MemorySettings,
    ) -> None:
        self.catalogue = catalogue
        self.registry: Registry[ServedModel] = Registry(functools.cache(loader.budget_bytes))
        self.defaults = dict(defaults)
        self.missing: dict[str, ModelError] = {}
        self._stated_defaults = defaults
        self._serving = serving
        self._on_died = on_died
        self._memory = memory
        self._background = Background()
        self._changed = Change()
        self._on_demand: dict[str, asyncio.Task[Loaded | None]] = {}
        lock = asyncio.Lock()
        self.evictor = Evictor(self.registry, self._background, self._changed, loader.give_back)
        self.reservations = MemoryReservations(self.registry, self.evictor, self._changed, lock)
        self._loads = LoadQueue(
            self.registry, self.reservations, loader, memory, lock, self._changed, self.publish, on_died
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator["ModelManager"]:
        """Load and unload models while the context is open; leaving it stops loads, and the models."""
        if self._memory.idle_unload_s:
            self._background.spawn(self.evictor.unload_idle(self._memory.idle_unload_s), "unload_idle")
        try:
            yield self
        finally:
            await self._background.close()
            for loaded in self.registry.everything():
                await loaded.serves.stop()

    # Requests

    def embedder(self, model: str | None = None) -> AbstractAsyncContextManager[Embedder]:
        """An embedding model that stays as it is while the context is open, loaded first if need be.

        Raises UnknownModel, ModelUnavailable and what loading raises; a failure is remembered for a while. Raises
        InvalidField for a model that generates.
        """
        return self._lease(model or self._default("embedding"), "embedding", Embedder)

    def generator(self, model: str | None, form: Form) -> AbstractAsyncContextManager[Generator]:
        """A generation model, likewise. form: of the prompts; it decides if no model is named."""
        return self._lease(model or self._default(form), "generation", Generator)

    def any_model(self, model: str | None, form: Form) -> AbstractAsyncContextManager[Embedder | Generator]:
        """A model of either kind, likewise."""
        named = model or self._default(form)
        return self.embedder(named) if self.catalogue.get(named).kind == "embedding" else self.generator(named, form)

    def _default(self, form: Form) -> str:
        if form not in self.defaults:
            raise NotFound(f"no model here serves requests of the form {form!r} that name none; name one in 'model'")
        return self.defaults[form]

    @asynccontextmanager
    async def _lease(self, model: str, kind: Kind, expected: type[ServedT]) -> AsyncIterator[ServedT]:
        loaded = await self._loaded(model, kind)
        served = self.registry.lease(loaded)
        assert isinstance(served, expected)
        try:
            yield served
        finally:
            if self.registry.release(loaded):
                self.evictor.free_unused(loaded)
            self._changed.set()

    async def _loaded(self, model: str, kind: Kind) -> Loaded:
        spec = self.catalogue.get(model)
        if spec.kind != kind:
            raise InvalidField(f"field 'model': model {model!r} {OTHER_KIND[spec.kind]}")
        while (loaded := self.registry.current(model)) is None:
            if not self._memory.load_on_demand:
                if model in self.missing:
                    raise self.missing[model].with_traceback(None)
                others = ", ".join(other.model for other in self.registry) or "none"
                reason = f"it is not loaded on this worker, which loads none on demand; loaded: {others}"
                raise ModelUnavailable(model, reason)
            if failure := self.registry.failure(model):
                raise failure.error.with_traceback(None)
            if (task := self._on_demand.get(model)) is None:
                task = self._on_demand[model] = self._background.spawn(self._load_on_demand(spec), f"load.{model}")
            await asyncio.shield(task)  # one load for all who wait; one that leaves does not stop it
        return loaded

    async def _load_on_demand(self, spec: ModelSpec) -> Loaded | None:
        """Nothing is downloaded for a request: any client could fill the disk."""
        try:
            return await self._loads.load(LoadRequest(spec))
        finally:
            del self._on_demand[spec.id]

    # Loading

    async def load(
        self,
        model: str,
        dtype: Dtype | None = None,
        quantization: Quantization | None = None,
        *,
        pin: bool | None = None,
    ) -> Loaded:
        """Load a model, downloaded first if need be; one that is loaded with other options is loaded again.

        dtype, quantization: hold for this model from now on; if neither is given, those given before hold, and dtype
        "auto" alone goes back to the model's entry. pin: whether to keep it from being evicted. Raises what
        `LoadQueue.load` raises.
        """
        overrides: dict[str, Any] = {} if pin is None else {"pinned": pin}
        if dtype or quantization:
            overrides |= {"dtype": None if dtype == "auto" else dtype, "quantization": quantization}
        return await self._require("load", LoadRequest(self.catalogue.get(model), overrides, download=True))

    async def reload(self, model: str, version: str | None = None) -> Loaded:
        """Load a model's weights anew beside those that serve, and swap. version: None for the live one.

        Requests in flight finish on the old weights, later ones see the new. Raises what `LoadQueue.load` raises.
        """
        return await self._require("reload", LoadRequest(self.catalogue.get(model), {"version": version}, reload=True))

    async def refresh(self, model: str) -> Loaded | None:
        """Have a model that is in memory, or being loaded, serve its live version; None if it is not in memory.

        Then it is loaded in that version later. Raises what `LoadQueue.load` raises.
        """
        request = LoadRequest(self.catalogue.get(model), {"version": None}, reload=True, only_loaded=True)
        return await self._background.shielded(self._loads.load(request), f"refresh.{model}")

    async def _require(self, verb: str, request: LoadRequest) -> Loaded:
        loaded = await self._background.shielded(self._loads.load(request), f"{verb}.{request.spec.id}")
        assert loaded is not None  # only `only_loaded` gives None
        return loaded

    def publish(self, model: Model) -> Loaded:
        """Serve a loaded model from now on, in place of the one with its id."""
        served = self._serving(model)
        served.start(self._on_died)
        facts = served.facts
        loaded = LoadedModel(facts.model, facts.version, facts.device, facts.memory_bytes, served)
        replaced = self.registry.publish(loaded)
        if replaced is not None:
            self.evictor.free_unused(replaced)
        self._changed.set()
        if self.missing.pop(facts.model, None):  # it is the default again for what the settings say
            self.defaults |= {form: model for form, model in self._stated_defaults.items() if model == facts.model}
        log.info(
            "model.loaded",
            model=facts.model,
            version=facts.version,
            device=facts.device,
            memory_bytes=facts.memory_bytes,
            replaced=replaced and replaced.version,
        )
        for note in facts.notes:
            log.warning("model.noted", model=facts.model, note=note)
        return loaded


def model_manager(
    catalogue: Catalogue,
    settings: Settings,
    loader: ModelLoader,
    device: DeviceThread,
    telemetry: Telemetry,
    on_died: Callable[[BaseException], None],
) -> ModelManager:
    """The models of a worker, none loaded yet; all of them share the device's thread."""

    def serving(model: Model) -> ServedModel:
        if generates(model):
            generation = settings.generation
            return Generator(model, device, telemetry.generation, generation.max_running, generation.stuck_step_s)
        encoder = cast(Encoder, model)
        return Embedder(encoder, device, _batch_limits(settings, encoder.device), telemetry)

    def died(error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        log.error("model.died", exc_info=error)
        on_died(error)

    return ModelManager(catalogue, loader, serving, catalogue.defaults(settings.chosen_models), died, settings.memory)


def _batch_limits(settings: Settings, device: str) -> BatchLimits:
    kind = device.partition(":")[0]
    batch, limits = settings.batch, settings.limits
    return BatchLimits(
        budget_tokens=batch.budget_tokens or BUDGET_TOKENS[kind],
        overhead_tokens=OVERHEAD_TOKENS[kind] if batch.overhead_tokens is None else batch.overhead_tokens,
        queue_texts=limits.queue_texts,
        queue_tokens=limits.queue_tokens,
    )
