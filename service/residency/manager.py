"""Models come while requests run: loaded on first use, leased, swapped.

Owns the tasks that load. What may be in memory is the registry's to say (models/registry.py), how a model is loaded
the loader's (service/residency/loader.py), how it goes the departures' (service/residency/evictor.py).
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

import structlog

from models.catalogue import Catalogue, Dtype, Form, Kind, ModelSpec, Quantization
from models.errors import Crowded, DeviceFailed, ModelError, ModelUnavailable, OtherDimensions, OverBudget
from models.registry import LoadedModel, Registry
from subjects import names
from subjects.errors import InvalidField, NotFound

from ..config import MemorySettings
from ..embedding.embedder import Embedder
from ..generation.generator import Generator
from ..runtime.background import Background
from ..runtime.change import Change
from .evictor import Evictor, Loaded
from .loader import LoadOverrides, ModelLoader
from .loader_thread import LoaderThreads, StillRunning
from .reservations import MemoryReservations, Resize
from .served import Model, Served, facts_of

if TYPE_CHECKING:
    from models.sandbox.probe import Unproved

log = structlog.get_logger(__name__)

ArgTs = TypeVarTuple("ArgTs")
ServedT = TypeVar("ServedT", bound=Served)
ResultT = TypeVar("ResultT")
OTHERWISE = {
    "embedding": f"gives vectors; ask {names.EMBED}",
    "generation": f"generates text; ask {names.GENERATE}",
}
"""Where to go with a model of each kind."""
ROOM_PATIENCE_S = 10.0
"""How long a model waits for those in use to be idle for a moment: nobody is turned out."""


@dataclass(eq=False)
class _NotProved(Exception):
    """A model was not opened in a process of its own yet."""

    unproved: "Unproved"


class ModelManager:
    """The models of one worker. defaults: for each form of a request the id that serves those which name none.

    serving makes of a loaded model what serves requests; on_died hears of one that stopped working by itself,
    and of a device that did.
    memory: which models stay, and whether a request may have one loaded. missing: why a model that the settings name is
    not there, until it is.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        loader: ModelLoader,
        serving: Callable[[Model], Served],
        defaults: dict[Form, str],
        on_died: Callable[[BaseException], None],
        memory: MemorySettings,
    ) -> None:
        self.catalogue = catalogue
        self.registry: Registry[Served] = Registry(functools.cache(loader.budget_bytes))
        self.defaults = dict(defaults)
        self.missing: dict[str, ModelError] = {}
        self._stated_defaults = defaults
        self._loader = loader
        self._serving = serving
        self._on_died = on_died
        self._memory = memory
        self._threads = LoaderThreads()
        self._background = Background()
        self._loads: dict[str, asyncio.Task[Loaded]] = {}
        self._chosen: dict[str, LoadOverrides] = {}
        self._dimensions: dict[str, int] = {}
        self._one_at_a_time = asyncio.Lock()
        self._changed = Change()
        self.departures = Evictor(self.registry, self._background, self._changed, loader.give_back)
        self._room = MemoryReservations(self.registry, self.departures, self._changed, self._one_at_a_time)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["ModelManager"]:
        """Models may come and go while the context is open; leaving ends what loads and frees, and what serves."""
        if self._memory.idle_unload_s:
            self._background.spawn(self.departures.unload_idle(self._memory.idle_unload_s), "unload_idle")
        try:
            yield self
        finally:
            await self._background.close()
            for resident in self.registry.everything():
                await resident.serves.stop()

    # Requests

    def embedder(self, model: str | None = None) -> AbstractAsyncContextManager[Embedder]:
        """An embedding model that stays as it is while the context is open, loaded first if need be.

        Raises UnknownModel, ModelUnavailable and what loading raises; a failure is remembered for a while. Raises
        InvalidField for a model that generates.
        """
        return self._lease(model or self._default("embedding"), "embedding", Embedder)

    def generator(self, model: str | None, form: Form) -> AbstractAsyncContextManager[Generator]:
        """A generation model, likewise. form: of the prompts, which decides where no model is named."""
        return self._lease(model or self._default(form), "generation", Generator)

    def _default(self, form: Form) -> str:
        if form not in self.defaults:
            raise NotFound(f"no model here serves requests of the form {form!r} that name none; name one in 'model'")
        return self.defaults[form]

    @asynccontextmanager
    async def _lease(self, model: str, kind: Kind, expected: type[ServedT]) -> AsyncIterator[ServedT]:
        resident = await self._resident(model, kind)
        served = self.registry.lease(resident)
        assert isinstance(served, expected)
        try:
            yield served
        finally:
            if self.registry.release(resident):
                self.departures.free_unused(resident)
            self._changed.set()

    async def _resident(self, model: str, kind: Kind) -> Loaded:
        spec = self.catalogue.get(model)
        if spec.kind != kind:
            raise InvalidField(f"field 'model': model {model!r} {OTHERWISE[spec.kind]}")
        while (resident := self.registry.current(model)) is None:
            if not self._memory.load_on_demand:
                if model in self.missing:
                    raise self.missing[model].with_traceback(None)
                loaded = ", ".join(other.model for other in self.registry) or "none"
                reason = f"it is not loaded on this worker, which loads none on demand; loaded: {loaded}"
                raise ModelUnavailable(model, reason)
            if failure := self.registry.failure(model):
                raise failure.error.with_traceback(None)
            if (load := self._loads.get(model)) is None:
                load = self._loads[model] = self._background.spawn(self._load_on_demand(spec), f"load.{model}")
            await asyncio.shield(load)  # one load for all who wait; one that leaves does not stop it
        return resident

    async def _load_on_demand(self, spec: ModelSpec) -> Loaded:
        """Nothing is downloaded for a request: any client could fill the disk."""
        try:
            return await self._with_room(self._change(spec, {}, always=False))
        finally:
            del self._loads[spec.id]

    # Memory for others

    def set_aside(self, name: str, device: str, memory_bytes: int) -> AbstractAsyncContextManager[Resize]:
        """Memory that no model takes while the context is open, for work beside them; idle models that are not pinned
        go for it. Inside it can be resized.

        Waits for as long as models in use, or other such work, stand in the way. Raises NoRoom where it can never fit.
        """
        return self._room.set_aside(name, device, memory_bytes)

    # Loading

    async def load(
        self,
        model: str,
        dtype: Dtype | None = None,
        quantization: Quantization | None = None,
        *,
        pin: bool | None = None,
    ) -> Loaded:
        """Load a model, downloaded first if need be; one that is loaded otherwise is loaded again.

        dtype, quantization: hold for this model from now on; where neither is given what was chosen before does, and
        dtype "auto" alone goes back to the model's entry. pin: whether to keep it from being evicted.
        """
        spec = self.catalogue.get(model)
        changes: dict[str, Any] = {} if pin is None else {"pinned": pin}
        if dtype or quantization:
            changes |= {"dtype": None if dtype == "auto" else dtype, "quantization": quantization}
        return await self._background.shielded(self._fetch_and_load(spec, changes), f"load.{model}")

    async def _fetch_and_load(self, spec: ModelSpec, changes: Mapping[str, Any]) -> Loaded:
        await self._threads.run(self._loader.fetch, spec)  # a download must not hold up other loads
        return await self._with_room(self._change(spec, changes, always=False))

    async def reload(self, model: str, version: str | None = None) -> Loaded:
        """Load a model's weights anew, in its live version or a named one, beside those that serve, and swap.

        Requests in flight finish on the old weights, later ones see the new. Raises OtherDimensions and what loading
        raises; the old weights then go on serving.
        """
        change = self._change(self.catalogue.get(model), {"version": version}, always=True)
        return await self._background.shielded(self._with_room(change), f"reload.{model}")

    async def refresh(self, model: str) -> Loaded | None:
        """Where a model is in memory, or just coming, have it serve its live version; else it is loaded in that later.

        None where it is not in memory. Raises what `reload` raises.
        """
        spec = self.catalogue.get(model)
        change = self._change(spec, {"version": None}, always=True)

        async def refreshed() -> Loaded | None:
            if self.registry.current(model) is not None:
                return await change()
            if before := self._chosen.get(model):
                self._chosen[model] = replace(before, version=None)
            return None

        return await self._background.shielded(self._with_room(refreshed), f"refresh.{model}")

    def _change(
        self, spec: ModelSpec, changes: Mapping[str, Any], *, always: bool
    ) -> Callable[[], Coroutine[Any, Any, Loaded]]:
        """What brings a model into memory as it is chosen from now on, where it is not, or always."""

        async def change() -> Loaded:
            before = self._chosen.get(spec.id, LoadOverrides(pinned=spec.id in self._memory.pinned))
            chosen = replace(before, **changes)
            resident = self.registry.current(spec.id)
            if resident is None or always or replace(chosen, pinned=before.pinned) != before:
                resident = await self._load(spec, chosen)
            self._chosen[spec.id] = chosen
            resident.pinned = chosen.pinned
            self._changed.set()
            return resident

        return change

    async def _with_room(self, change: Callable[[], Coroutine[Any, Any, ResultT]]) -> ResultT:
        """Load, one at a time. Where models in use stand in the way: once they do not, or Crowded after a while."""
        until = asyncio.get_running_loop().time() + ROOM_PATIENCE_S
        while True:
            try:
                async with self._one_at_a_time:
                    return await change()
            except _NotProved as error:
                await self._prove(error.unproved)
            except Crowded as crowded:
                try:
                    async with asyncio.timeout_at(until):
                        await self._changed.wait()
                except TimeoutError:
                    raise crowded from None

    async def _prove(self, unproved: "Unproved") -> None:
        """Outside of the order of loads, which one that goes on for ever would hold up."""
        try:
            await self._threads.run(self._loader.prove, unproved)
        except ModelError as error:
            self._failed(unproved.spec, error)
            raise

    async def _load(self, spec: ModelSpec, choice: LoadOverrides) -> Loaded:
        log.info("model.load_began", model=spec.id)
        try:
            options = await self._step(spec.id, self._loader.options, spec, choice)
            if unproved := await self._step(spec.id, self._loader.unproved, spec, options):
                raise _NotProved(unproved)
            await self._room.make(spec.id, *await self._step(spec.id, self._loader.expected, spec, options))
            loaded = await self._step(spec.id, self._loader.load, spec, options)
            await self._check(spec, loaded)
            return self.publish(loaded)
        except _NotProved:
            raise
        except (TimeoutError, StillRunning) as error:
            self._loader.abandon()
            reason = f"its load was given up after {self._memory.load_timeout_s:g} s (memory.load_timeout_s)"
            self._failed(spec, hangs := ModelUnavailable(spec.id, f"{reason}, and goes on; start the worker again"))
            raise hangs from error
        except ModelError as error:
            self._failed(spec, error)
            raise
        except Exception as error:
            log.exception("model.load_broke", model=spec.id)
            reason = f"loading it broke ({type(error).__name__}); the worker's log tells more"
            self._failed(spec, broken := ModelUnavailable(spec.id, reason))
            raise broken from error
        finally:
            self.registry.cancel(spec.id)

    async def _step(self, model: str, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs) -> ResultT:
        """A step of a model's load. Raises TimeoutError, StillRunning."""
        return await self._threads.run_within(self._memory.load_timeout_s, model, function, *arguments)

    def _failed(self, spec: ModelSpec, error: ModelError) -> None:
        log.warning("model.load_failed", model=spec.id, reason=str(error))
        if isinstance(error, DeviceFailed):
            self._on_died(error)
        # Room may come at any time, and looking for it costs little.
        if self.registry.current(spec.id) is None and not isinstance(error, OverBudget):
            self.registry.fail(spec.id, error)

    async def _check(self, spec: ModelSpec, model: Model) -> None:
        """Drop what was loaded where it does not fit: the vectors before it, or, as measured, the memory."""
        facts = facts_of(model)
        try:
            served = self._dimensions.setdefault(spec.id, facts.dimensions)
            if served != facts.dimensions:
                raise OtherDimensions(spec.id, facts.dimensions, served)
            await self._room.make(spec.id, facts.device, facts.memory_bytes)
        except BaseException:
            await self._threads.run(self._loader.drop, model)
            raise

    def publish(self, model: Model) -> Loaded:
        """Serve a loaded model from now on, in place of the one of its id that did so far."""
        served = self._serving(model)
        served.start(self._on_died)
        facts = served.facts
        resident = LoadedModel(facts.model, facts.version, facts.device, facts.memory_bytes, served)
        replaced = self.registry.publish(resident)
        if replaced is not None:
            self.departures.free_unused(replaced)
        self._changed.set()
        if self.missing.pop(facts.model, None):  # it serves what is its own again
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
        return resident
