"""Memory of a device: reserved for a model that loads, or for work beside the models, and freed by evicting others.

Which models have to go is decided by the registry (models/registry.py).
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog

from models.errors import Conflict, Crowded, NotLoaded, OverBudget
from models.registry import LoadedModel, Registry

from ..runtime.background import Background, Change
from ..served_model import ServedModel

log = structlog.get_logger(__name__)

Loaded: TypeAlias = LoadedModel[ServedModel]
Resize: TypeAlias = Callable[[int], None]
"""Changes a reservation to this many bytes; it stays as it was if models that may not be evicted leave less."""


@dataclass(frozen=True, slots=True)
class Evictor:
    """Takes models out of memory, each once nobody uses it any more.

    give_back: returns a device's memory to the system. changed: set whenever a model has gone.
    """

    registry: Registry[ServedModel]
    background: Background
    changed: Change
    give_back: Callable[[str], None]

    async def unload(self, model: str, *, force: bool = False) -> Loaded:
        """Take a model out of memory -> what it was, once it is gone.

        force: also if requests use it; they finish first. Raises NotLoaded, Conflict.
        """
        loaded = self.registry.current(model)
        if loaded is None:
            raise NotLoaded(model)
        if loaded.leases and not force:
            raise Conflict(
                f"model {model!r} is in use by {loaded.leases} requests; try again later, or send force: true, which "
                "takes no new ones and unloads it when these are done"
            )
        self.retire(loaded)
        while self.registry.in_memory(loaded):
            await self.changed.wait()
        return loaded

    def retire(self, loaded: Loaded) -> None:
        """Give out no more leases of a model, and free it once nobody uses it."""
        self.registry.retire(loaded)
        self.free_unused(loaded)

    def free_unused(self, loaded: Loaded) -> None:
        """Free a retired model now if nobody uses it; else the last lease to end does."""
        if not loaded.leases:
            self.background.spawn(self._free(loaded), f"free.{loaded.model}")

    async def _free(self, loaded: Loaded) -> None:
        try:
            await loaded.serves.close()
            await asyncio.to_thread(self.give_back, loaded.device)
        finally:
            self.registry.forget(loaded)
            self.changed.set()
        log.info("model.unloaded", model=loaded.model, version=loaded.version, memory_bytes=loaded.memory_bytes)

    async def unload_idle(self, idle_s: float) -> None:
        """Unload, for ever, each model that nobody has used for this long."""
        while True:
            now = self.registry.clock()
            for loaded in self.registry.idle_since(now - idle_s):
                self.retire(loaded)
            due = [loaded.used_at + idle_s for loaded in self.registry.idle_since(now)]
            with suppress(TimeoutError):
                async with asyncio.timeout(min(due) - now if due else None):
                    await self.changed.wait()


class ReservationRefused(OverBudget):
    """Work beside the models needs more memory than they can leave it; `model` is the name of the work."""

    def __str__(self) -> str:
        left = max(0, self.budget - self.in_use)
        return (
            f"{self.model} needs {self.needed / 1e9:.2f} GB of memory, and models that may not be unloaded leave it "
            f"{left / 1e9:.2f} of {self.budget / 1e9:.2f} GB; let it need less, unpin a model or raise memory.budget_gb"
        )


@dataclass(frozen=True, slots=True)
class MemoryReservations:
    """Reservations in the registry, and the evictions that make space for them.

    load_lock: held while a model loads; what a load reserves must not be taken for memory that never comes back.
    changed: set whenever a model has gone or become idle.
    """

    registry: Registry[ServedModel]
    evictor: Evictor
    changed: Change
    load_lock: asyncio.Lock
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _devices: dict[str, str] = field(default_factory=dict)
    """Of the work beside the models."""

    async def make_space(self, key: str, device: str, memory_bytes: int) -> None:
        """Reserve memory under a key, and wait until the models that are evicted for it are gone.

        Raises Crowded, OverBudget; then nothing is reserved.
        """
        self._evict_for(key, device, memory_bytes)
        while not self.registry.fits(device):
            await self.changed.wait()

    def _evict_for(self, key: str, device: str, memory_bytes: int) -> None:
        for loaded in self.registry.reserve(key, device, memory_bytes):
            log.info("model.evicted", model=loaded.model, by=key)
            self.evictor.free_unused(loaded)

    @asynccontextmanager
    async def reserve(self, name: str, device: str, memory_bytes: int) -> AsyncIterator[Resize]:
        """Keep memory from models while the context is open, for work beside them -> resizes the reservation.

        Idle models that are not pinned are evicted for it. Waits while models in use, or other such work, need the
        memory. Raises ReservationRefused if it can never fit.
        """
        key = f"{name} #{next(self._numbers)}"  # no model has such an id
        held_bytes = memory_bytes

        def resize(wanted_bytes: int) -> None:
            nonlocal held_bytes
            try:
                self._evict_for(key, device, wanted_bytes)
                held_bytes = wanted_bytes
            except OverBudget as error:
                log.warning("memory.short", name=name, device=device, reason=str(error))
                self._evict_for(key, device, held_bytes)
            log.info("memory.resized", name=name, device=device, memory_bytes=held_bytes)
            self.changed.set()

        try:
            while not await self._try_reserve(key, name, device, memory_bytes):
                await self.changed.wait()
            log.info("memory.reserved", name=name, device=device, memory_bytes=memory_bytes)
            yield resize
        finally:
            self.registry.cancel(key)
            self._devices.pop(key, None)
            self.changed.set()

    async def _try_reserve(self, key: str, name: str, device: str, memory_bytes: int) -> bool:
        """Reserve memory -> False if it will only be there later. Raises ReservationRefused."""
        async with self.load_lock:
            try:
                await self.make_space(key, device, memory_bytes)
            except Crowded:
                return False
            except OverBudget as error:
                if memory_bytes <= error.budget and device in self._devices.values():
                    return False
                raise ReservationRefused(name, error.needed, error.budget, error.in_use) from None
            self._devices[key] = device
            return True
