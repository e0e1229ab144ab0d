"""Models come and go while requests run: loaded on first use, leased, evicted, swapped and unloaded.

Owns the tasks that load and free. What may be in memory is the registry's to say (models/registry.py), how a
model is loaded the loader's (service/model_loader.py).
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import structlog

from models.catalogue import Catalogue, Dtype, ModelSpec, Quantization
from models.encoders.base import Encoder
from models.errors import Crowded, InUse, ModelError, ModelUnavailable, NotLoaded, OtherDimensions, OverBudget
from models.registry import Registry, Resident

from .background import Background
from .change import Change
from .config import MemorySettings
from .embedder import Embedder
from .loader_thread import LoaderThread
from .model_loader import Choice, ModelLoader

log = structlog.get_logger(__name__)

Loaded = Resident[Embedder]
ROOM_PATIENCE_S = 10.0
"""How long a model waits for those in use to be idle for a moment: nobody is turned out."""


class Residency:
    """The models of one worker. default: the id that serves requests which name none.

    embedder makes of an encoder what serves requests; on_died hears of one that stopped working by itself.
    memory: which models stay, and whether a request may have one loaded.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        loader: ModelLoader,
        embedder: Callable[[Encoder], Embedder],
        default: str,
        on_died: Callable[[BaseException], None],
        memory: MemorySettings,
    ) -> None:
        self.catalogue = catalogue
        self.registry: Registry[Embedder] = Registry(functools.cache(loader.budget_bytes))
        self.default = default
        self._loader = loader
        self._embedder = embedder
        self._on_died = on_died
        self._memory = memory
        self._loading, self._fetching = LoaderThread(), LoaderThread()
        self._background = Background()
        self._loads: dict[str, asyncio.Task[Loaded]] = {}
        self._chosen: dict[str, Choice] = {}
        self._dimensions: dict[str, int] = {}
        self._one_at_a_time = asyncio.Lock()
        self._changed = Change()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Residency"]:
        """Models may come and go while the context is open; leaving ends what loads and frees, and the batchers."""
        if self._memory.idle_unload_s:
            self._background.spawn(self._unload_idle(self._memory.idle_unload_s), "unload_idle")
        try:
            yield self
        finally:
            await self._background.close()
            for resident in self.registry.everything():
                await resident.serves.stop()
            self._loading.close()
            self._fetching.close()

    @property
    def is_loading(self) -> bool:
        """Whether a thread still loads or downloads: it cannot be stopped, and would hold up the process's end."""
        return self._loading.is_busy or self._fetching.is_busy

    # Requests

    @asynccontextmanager
    async def lease(self, model: str | None = None) -> AsyncIterator[Embedder]:
        """A model that stays as it is while the context is open, loaded first if need be.

        Raises UnknownModel, ModelUnavailable and what loading raises; a failure is remembered for a while.
        """
        resident = await self._resident(model or self.default)
        embedder = self.registry.lease(resident)
        try:
            yield embedder
        finally:
            if self.registry.release(resident):
                self._free_unused(resident)
            self._changed.set()

    async def _resident(self, model: str) -> Loaded:
        spec = self.catalogue.get(model)
        while (resident := self.registry.current(model)) is None:
            if not self._memory.load_on_demand:
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
        await self._fetching.run(self._loader.fetch, spec)  # a download must not hold up other loads
        return await self._with_room(self._change(spec, changes, always=False))

    async def reload(self, model: str, version: str | None = None) -> Loaded:
        """Load a model's weights anew, in its live version or a named one, beside those that serve, and swap.

        Requests in flight finish on the old weights, later ones see the new. Raises OtherDimensions and what loading
        raises; the old weights then go on serving.
        """
        change = self._change(self.catalogue.get(model), {"version": version}, always=True)
        return await self._background.shielded(self._with_room(change), f"reload.{model}")

    def _change(
        self, spec: ModelSpec, changes: Mapping[str, Any], *, always: bool
    ) -> Callable[[], Coroutine[Any, Any, Loaded]]:
        """What brings a model into memory as it is chosen from now on, where it is not, or always."""

        async def change() -> Loaded:
            before = self._chosen.get(spec.id, Choice(pinned=spec.id in self._memory.pinned))
            chosen = replace(before, **changes)
            resident = self.registry.current(spec.id)
            if resident is None or always or replace(chosen, pinned=before.pinned) != before:
                resident = await self._load(spec, chosen)
            self._chosen[spec.id] = chosen
            resident.pinned = chosen.pinned
            self._changed.set()
            return resident

        return change

    async def _with_room(self, change: Callable[[], Coroutine[Any, Any, Loaded]]) -> Loaded:
        """Load, one at a time. Where models in use stand in the way: once they do not, or Crowded after a while."""
        until = asyncio.get_running_loop().time() + ROOM_PATIENCE_S
        while True:
            try:
                async with self._one_at_a_time:
                    return await change()
            except Crowded as crowded:
                try:
                    async with asyncio.timeout_at(until):
                        await self._changed.wait()
                except TimeoutError:
                    raise crowded from None

    async def _load(self, spec: ModelSpec, choice: Choice) -> Loaded:
        log.info("model.load_began", model=spec.id)
        try:
            options = await self._loading.run(self._loader.options, spec, choice)
            await self._make_room(spec, *await self._loading.run(self._loader.expected, spec, options))
            encoder = await self._loading.run(self._loader.load, spec, options)
            await self._check(spec, encoder)
            return self.publish(encoder)
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

    def _failed(self, spec: ModelSpec, error: ModelError) -> None:
        log.warning("model.load_failed", model=spec.id, reason=str(error))
        # Room may come at any time, and looking for it costs little.
        if self.registry.current(spec.id) is None and not isinstance(error, OverBudget):
            self.registry.fail(spec.id, error)

    async def _check(self, spec: ModelSpec, encoder: Encoder) -> None:
        """Drop what was loaded where it does not fit: the vectors before it, or, as measured, the memory."""
        try:
            served = self._dimensions.setdefault(spec.id, encoder.dimensions)
            if served != encoder.dimensions:
                raise OtherDimensions(spec.id, encoder.dimensions, served)
            await self._make_room(spec, encoder.device, encoder.weight_bytes)
        except BaseException:
            await self._loading.run(self._loader.drop, encoder)
            raise

    async def _make_room(self, spec: ModelSpec, device: str, memory_bytes: int) -> None:
        """Set aside what the model will take, and wait until those that have to go for it are gone."""
        for resident in self.registry.reserve(spec.id, device, memory_bytes):
            log.info("model.evicted", model=resident.model, by=spec.id)
            self._free_unused(resident)
        while not self.registry.fits(device):
            await self._changed.wait()

    def publish(self, encoder: Encoder) -> Loaded:
        """Serve a loaded model from now on, in place of the one of its id that did so far."""
        embedder = self._embedder(encoder)
        embedder.start(self._on_died)
        resident = Resident(encoder.model, encoder.version, encoder.device, encoder.weight_bytes, embedder)
        replaced = self.registry.publish(resident)
        if replaced is not None:
            self._free_unused(replaced)
        self._changed.set()
        log.info(
            "model.loaded",
            model=encoder.model,
            version=encoder.version,
            device=encoder.device,
            memory_bytes=resident.memory_bytes,
            replaced=replaced and replaced.version,
        )
        for note in encoder.notes:
            log.warning("model.noted", model=encoder.model, note=note)
        return resident

    # Unloading

    async def unload(self, model: str, *, force: bool = False) -> Loaded:
        """Take a model out of memory -> what it was, once it is gone.

        force: although requests use it; they finish first. Raises UnknownModel, NotLoaded, InUse.
        """
        self.catalogue.get(model)
        resident = self.registry.current(model)
        if resident is None:
            raise NotLoaded(model)
        if resident.leases and not force:
            raise InUse(model, resident.leases)
        self.registry.retire(resident)
        self._free_unused(resident)
        while self.registry.holds(resident):
            await self._changed.wait()
        return resident

    def _free_unused(self, resident: Loaded) -> None:
        """Free a retired model now, if nobody uses it; else the last lease that ends does."""
        if not resident.leases:
            self._background.spawn(self._free(resident), f"free.{resident.model}")

    async def _free(self, resident: Loaded) -> None:
        try:
            await resident.serves.close()
            await asyncio.to_thread(self._loader.give_back, resident.device)
        finally:
            self.registry.forget(resident)
            self._changed.set()
        log.info("model.unloaded", model=resident.model, version=resident.version, memory_bytes=resident.memory_bytes)

    async def _unload_idle(self, idle_s: float) -> None:
        """Unload, for ever, each model that nobody has used for so long."""
        while True:
            now = self.registry.clock()
            for resident in self.registry.idle_since(now - idle_s):
                self.registry.retire(resident)
                self._free_unused(resident)
            due = [resident.used_at + idle_s for resident in self.registry.idle_since(now)]
            with suppress(TimeoutError):
                async with asyncio.timeout(min(due) - now if due else None):
                    await self._changed.wait()
