"""Loads of models, one at a time, beside those that serve."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

import structlog

from models.catalogue import ModelSpec
from models.errors import Conflict, Crowded, DeviceFailed, ModelError, ModelUnavailable, OverBudget
from models.registry import Registry

from ..runtime.background import Change
from ..served_model import Model, ServedModel, facts_of
from ..settings.serving import MemorySettings
from .loader import LoaderThreads, LoadOverrides, ModelLoader, StillRunning
from .reservations import Loaded, MemoryReservations

if TYPE_CHECKING:
    from models.sandbox.probe import Probe

log = structlog.get_logger(__name__)

ArgTs = TypeVarTuple("ArgTs")
ResultT = TypeVar("ResultT")
CROWDED_S = 10.0
"""How long a load waits for models in use to be idle for a moment; none is taken from its requests."""


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """A model to be brought into memory.

    overrides: fields of LoadOverrides to change, for this load and later ones; those absent stay as they were.
    download: fetch it first if it is not on this machine. reload: load it anew even if it is loaded as asked.
    only_loaded: do nothing for a model that is not in memory, but remember the overrides.
    """

    spec: ModelSpec
    overrides: Mapping[str, Any] = field(default_factory=dict)
    download: bool = False
    reload: bool = False
    only_loaded: bool = False


@dataclass(eq=False)
class _NeedsProbe(Exception):
    """A model has not been opened in a process of its own yet."""

    probe: "Probe"


@dataclass(frozen=True, slots=True)
class LoadQueue:
    """Runs load requests.

    lock: held while one runs. publish: serves a loaded model from then on. on_died: called when a device has failed.
    """

    registry: Registry[ServedModel]
    reservations: MemoryReservations
    loader: ModelLoader
    memory: MemorySettings
    lock: asyncio.Lock
    changed: Change
    publish: Callable[[Model], Loaded]
    on_died: Callable[[BaseException], None]
    _threads: LoaderThreads = field(default_factory=LoaderThreads)
    _overrides: dict[str, LoadOverrides] = field(default_factory=dict)
    _dimensions: dict[str, int] = field(default_factory=dict)

    async def load(self, request: LoadRequest) -> Loaded | None:
        """Bring a model into memory, after the loads before it; None if it is not loaded and `only_loaded` is set.

        Raises Crowded if models in use leave it no memory for CROWDED_S, OverBudget if there is not enough,
        Conflict, and what loading raises; an older version then goes on serving.
        """
        if request.download:
            # A download must not hold up other loads.
            await self._threads.run(
                self.loader.fetch, request.spec, replace(self._before(request), **request.overrides)
            )
        until = asyncio.get_running_loop().time() + CROWDED_S
        while True:
            try:
                async with self.lock:
                    return await self._run(request)
            except _NeedsProbe as error:
                await self._run_probe(error.probe)
            except Crowded as crowded:
                try:
                    async with asyncio.timeout_at(until):
                        await self.changed.wait()
                except TimeoutError:
                    raise crowded from None

    async def _run(self, request: LoadRequest) -> Loaded | None:
        spec = request.spec
        before = self._before(request)
        chosen = replace(before, **request.overrides)
        loaded = self.registry.current(spec.id)
        if loaded is None and request.only_loaded:
            self._overrides[spec.id] = chosen
            return None
        if loaded is None or request.reload or replace(chosen, pinned=before.pinned) != before:
            loaded = await self._load(spec, chosen)
        self._overrides[spec.id] = chosen
        loaded.pinned = chosen.pinned
        self.changed.set()
        return loaded

    def _before(self, request: LoadRequest) -> LoadOverrides:
        """How its model was loaded last."""
        model = request.spec.id
        return self._overrides.get(model, LoadOverrides(pinned=model in self.memory.pinned))

    async def _run_probe(self, probe: "Probe") -> None:
        """Open a model in a process of its own, without the lock: that may take for ever."""
        try:
            await self._threads.run(self.loader.run_probe, probe)
        except ModelError as error:
            self._failed(probe.spec, error)
            raise

    async def _load(self, spec: ModelSpec, overrides: LoadOverrides) -> Loaded:
        log.info("model.load_began", model=spec.id)
        try:
            options = await self._step(spec.id, self.loader.options, spec, overrides)
            if probe := await self._step(spec.id, self.loader.probe_for, spec, options):
                raise _NeedsProbe(probe)
            expected = await self._step(spec.id, self.loader.expected, spec, options)
            await self.reservations.make_space(spec.id, *expected)
            model = await self._step(spec.id, self.loader.load, spec, options)
            await self._check(spec, model)
            return self.publish(model)
        except _NeedsProbe:
            raise
        except (TimeoutError, StillRunning) as error:
            self.loader.abandon()
            reason = f"its load was given up after {self.memory.load_timeout_s:g} s (memory.load_timeout_s)"
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
        return await self._threads.run_within(self.memory.load_timeout_s, model, function, *arguments)

    def _failed(self, spec: ModelSpec, error: ModelError) -> None:
        log.warning("model.load_failed", model=spec.id, reason=str(error))
        if isinstance(error, DeviceFailed):
            self.on_died(error)
        # Memory may become free at any time, and looking for it costs little.
        if self.registry.current(spec.id) is None and not isinstance(error, OverBudget):
            self.registry.fail(spec.id, error)

    async def _check(self, spec: ModelSpec, model: Model) -> None:
        """Drop a model whose vectors do not fit those before it, or whose measured size does not fit the memory."""
        facts = facts_of(model)
        try:
            served = self._dimensions.setdefault(spec.id, facts.dimensions)
            if served != facts.dimensions:
                raise Conflict(
                    f"the new weights of model {spec.id!r} give {facts.dimensions} dimensions, those that serve give "
                    f"{served}; they go on serving. Give the new weights an entry of their own in the catalogue"
                )
            await self.reservations.make_space(spec.id, facts.device, facts.memory_bytes)
        except BaseException:
            await self._threads.run(self.loader.drop, model)
            raise
