"""Models come and go while requests run: loaded on first use, leased, evicted, swapped and unloaded.

Owns the tasks that load and free. What may be in memory is the registry's to say (models/registry.py), how a
model is loaded the loader's (service/model_loader.py).
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import structlog

from models.catalogue import Catalogue, Dtype, ModelSpec, Quantization
from models.encoders.base import Encoder
from models.errors import InUse, ModelError, ModelUnavailable, NotLoaded, OtherDimensions
from models.registry import Registry, Resident

from .background import Background
from .embedder import Embedder
from .loader_thread import LoaderThread
from .model_loader import Choice, ModelLoader

log = structlog.get_logger(__name__)

Loaded = Resident[Embedder]


class Residency:
    """The models of one worker. default: the id that serves requests which name none.

    embedder makes of an encoder what serves requests; on_died hears of one that stopped working by itself.
    on_demand: whether a request may have a model loaded.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        loader: ModelLoader,
        embedder: Callable[[Encoder], Embedder],
        default: str,
        on_died: Callable[[BaseException], None],
        *,
        on_demand: bool = True,
    ) -> None:
        self.catalogue = catalogue
        self.registry: Registry[Embedder] = Registry(functools.cache(loader.budget_bytes))
        self.default = default
        self._loader = loader
        self._embedder = embedder
        self._on_died = on_died
        self._on_demand = on_demand
        self._thread = LoaderThread()
        self._loads: dict[str, asyncio.Task[Loaded]] = {}
        self._background = Background()
        self._chosen: dict[str, Choice] = {}
        self._one_at_a_time = asyncio.Lock()
        self._freed = asyncio.Event()
        self._used = asyncio.Event()

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
                self._background.spawn(self._free(resident), f"free.{resident.model}")
            self._used.set()

    async def _resident(self, model: str) -> Loaded:
        spec = self.catalogue.get(model)
        while (resident := self.registry.current(model)) is None:
            if not self._on_demand:
                loaded = ", ".join(other.model for other in self.registry) or "none"
                raise ModelUnavailable(
                    model, f"it is not loaded on this worker, which loads none on demand; loaded: {loaded}"
                )
            if failure := self.registry.failure(model):
                raise failure.error.with_traceback(None)
            await self._single_flight(spec)
        return resident

    async def _single_flight(self, spec: ModelSpec) -> None:
        """Load a model once for all who wait for it; one that leaves does not stop the load."""
        task = self._loads.get(spec.id)
        if task is None:
            task = self._loads[spec.id] = self._background.spawn(self._load_on_demand(spec), f"load.{spec.id}")
            task.add_done_callback(lambda _: self._loads.pop(spec.id, None))
        await asyncio.shield(task)

    async def _load_on_demand(self, spec: ModelSpec) -> Loaded:
        """Nothing is downloaded for a request: any client could fill the disk."""
        async with self._one_at_a_time:
            if current := self.registry.current(spec.id):
                return current
            return await self._load(spec, self._chosen.get(spec.id, Choice()))

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

        dtype, quantization: hold for this model from now on, None: as its entry says. pin: keep it from being evicted.
        """
        spec = self.catalogue.get(model)
        await asyncio.to_thread(self._loader.fetch, spec)  # a download must not hold up other loads
        change = self._change(spec, {"dtype": dtype, "quantization": quantization}, always=False)
        resident = await self._background.shielded(change, f"load.{model}")
        if pin is not None:
            resident.pinned = pin
        return resident

    async def reload(self, model: str, version: str | None = None) -> Loaded:
        """Load a model's weights anew, in its live version or a named one, beside those that serve, and swap.

        Requests in flight finish on the old weights, later ones see the new. Raises OtherDimensions and what loading
        raises; the old weights then go on serving.
        """
        change = self._change(self.catalogue.get(model), {"version": version}, always=True)
        return await self._background.shielded(change, f"reload.{model}")

    async def _change(self, spec: ModelSpec, changes: Mapping[str, Any], *, always: bool) -> Loaded:
        async with self._one_at_a_time:
            before = self._chosen.get(spec.id, Choice())
            chosen = replace(before, **changes)
            resident = self.registry.current(spec.id)
            if resident is None or always or chosen != before:
                resident = await self._load(spec, chosen)
                self._chosen[spec.id] = chosen
            return resident

    async def _load(self, spec: ModelSpec, choice: Choice) -> Loaded:
        log.info("model.load_began", model=spec.id)
        try:
            options = await self._thread.run(self._loader.options, spec, choice)
            await self._make_room(spec, *await self._thread.run(self._loader.expected, spec, options))
            return await self._proved(spec, await self._thread.run(self._loader.load, spec, options))
        except ModelError as error:
            log.warning("model.load_failed", model=spec.id, reason=str(error))
            self._remember(spec, error)
            raise
        except Exception as error:
            log.exception("model.load_broke", model=spec.id)
            broken = ModelUnavailable(
                spec.id, f"loading it broke ({type(error).__name__}); the worker's log tells more"
            )
            self._remember(spec, broken)
            raise broken from error
        finally:
            self.registry.cancel(spec.id)

    def _remember(self, spec: ModelSpec, error: ModelError) -> None:
        if self.registry.current(spec.id) is None:
            self.registry.fail(spec.id, error)

    async def _proved(self, spec: ModelSpec, encoder: Encoder) -> Loaded:
        """Serve what was loaded, unless it does not fit: the vectors before it, or, as measured, the memory."""
        try:
            current = self.registry.current(spec.id)
            if current is not None and current.serves.encoder.dimensions != encoder.dimensions:
                raise OtherDimensions(spec.id, encoder.dimensions, current.serves.encoder.dimensions)
            await self._make_room(spec, encoder.device, encoder.weight_bytes)
        except BaseException:
            await self._thread.run(self._loader.drop, encoder)
            raise
        return self.publish(encoder)

    async def _make_room(self, spec: ModelSpec, device: str, memory_bytes: int) -> None:
        """Set aside what the model will take, and wait until those that have to go for it are gone.

        Each lease ends with its request's deadline, so this does too.
        """
        for resident in self.registry.reserve(spec.id, device, memory_bytes):
            log.info("model.evicted", model=resident.model, by=spec.id, leases=resident.leases)
            self._free_when_unused(resident)
        while not self.registry.fits(device):
            self._freed.clear()
            await self._freed.wait()

    def publish(self, encoder: Encoder, *, pinned: bool = False) -> Loaded:
        """Serve a loaded model from now on, in place of the one of its id that did so far."""
        embedder = self._embedder(encoder)
        embedder.start(self._on_died)
        resident = Resident(encoder.model, encoder.version, encoder.device, encoder.weight_bytes, embedder, pinned)
        replaced = self.registry.publish(resident)
        if replaced is not None:
            resident.pinned = replaced.pinned
            self._free_when_unused(replaced)
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
        self._used.set()
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
        self._free_when_unused(resident)
        while self.registry.holds(resident):
            self._freed.clear()
            await self._freed.wait()
        return resident

    def _free_when_unused(self, resident: Loaded) -> None:
        """Now, if nobody uses it; else the last lease that ends sees to it."""
        if not resident.leases:
            self._background.spawn(self._free(resident), f"free.{resident.model}")

    async def _free(self, resident: Loaded) -> None:
        try:
            await resident.serves.close()
            await self._thread.run(self._loader.give_back, resident.device)
        finally:
            self.registry.forget(resident)
            self._freed.set()
        log.info("model.unloaded", model=resident.model, version=resident.version, memory_bytes=resident.memory_bytes)

    async def unload_idle(self, idle_s: float) -> None:
        """Unload, for ever, each model that nobody has used for so long."""
        while True:
            now = self.registry.clock()
            for resident in self.registry.idle_since(now - idle_s):
                self.registry.retire(resident)
                self._free_when_unused(resident)
            self._used.clear()
            due = [resident.used_at + idle_s for resident in self.registry.idle_since(now)]
            with suppress(TimeoutError):
                async with asyncio.timeout(min(due) - now if due else None):
                    await self._used.wait()

    # All of them

    def queued(self) -> tuple[int, int]:
        """Texts and tokens that wait or run, over all models."""
        batchers = [resident.serves.batcher for resident in self.registry.everything()]
        return sum(batcher.queued_texts for batcher in batchers), sum(batcher.queued_tokens for batcher in batchers)

    def memory_bytes(self) -> int:
        """What the weights of all models take, over all devices."""
        return sum(resident.memory_bytes for resident in self.registry.everything())

    def described(self) -> dict[str, str]:
        """For discovery: what is loaded, in which version and where."""
        residents = list(self.registry)
        return {
            "models": ",".join(resident.model for resident in residents),
            "default_model": self.default,
            **{f"model.{resident.model}": f"{resident.version} on {resident.device}" for resident in residents},
        }

    async def close(self) -> None:
        """End what loads and frees, and the batchers; the weights go with the process."""
        await self._background.close()
        for resident in self.registry.everything():
            await resident.serves.stop()
        self._thread.close()
