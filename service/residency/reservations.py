"""Room in a device's memory: for a model that is loaded, or for work beside the models.

Owns how room comes about: who has to leave, and the wait until they are gone. Who may leave is the registry's to say
(models/registry.py), how they go the departures' (service/residency/evictor.py).
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

import structlog

from models.errors import Crowded, OverBudget
from models.registry import Registry

from ..runtime.change import Change
from .evictor import Evictor
from .served import Served

log = structlog.get_logger(__name__)


Resize: TypeAlias = Callable[[int], None]
"""Makes what is set aside more or less, in bytes; it stays as it was where models that may not go leave no more."""


@dataclass(eq=False)
class ReservationRefused(OverBudget):
    """What work beside the models needs is more than they can leave it; `model` is the name of the work."""

    def __str__(self) -> str:
        left = max(0, self.budget - self.in_use)
        return (
            f"{self.model} needs {self.needed / 1e9:.2f} GB of memory, and models that may not be unloaded leave it "
            f"{left / 1e9:.2f} of {self.budget / 1e9:.2f} GB; let it need less, unpin a model or raise memory.budget_gb"
        )


class MemoryReservations:
    """one_at_a_time: held while a model loads: what it reserves must not pass for memory that never comes back.

    changed: set whenever a model has gone or has become idle.
    """

    def __init__(
        self, registry: Registry[Served], departures: Evictor, changed: Change, one_at_a_time: asyncio.Lock
    ) -> None:
        self._registry = registry
        self._departures = departures
        self._changed = changed
        self._one_at_a_time = one_at_a_time
        self._numbers = itertools.count(1)
        self._aside: dict[str, str] = {}

    async def make(self, key: str, device: str, memory_bytes: int) -> None:
        """Reserve memory under a key, and wait until those that have to go for it are gone.

        Raises Crowded, OverBudget; then nothing is reserved.
        """
        self._reserve(key, device, memory_bytes)
        while not self._registry.fits(device):
            await self._changed.wait()

    def _reserve(self, key: str, device: str, memory_bytes: int) -> None:
        for resident in self._registry.reserve(key, device, memory_bytes):
            log.info("model.evicted", model=resident.model, by=key)
            self._departures.free_unused(resident)

    @asynccontextmanager
    async def set_aside(self, name: str, device: str, memory_bytes: int) -> AsyncIterator[Resize]:
        """Keep memory from models while the context is open; see Residency.set_aside."""
        key = f"{name} #{next(self._numbers)}"  # no model has such an id
        held_bytes = memory_bytes

        def resize(wanted_bytes: int) -> None:
            nonlocal held_bytes
            try:
                self._reserve(key, device, wanted_bytes)
                held_bytes = wanted_bytes
            except OverBudget as error:
                log.warning("memory.short", name=name, device=device, reason=str(error))
                self._reserve(key, device, held_bytes)
            log.info("memory.resized", name=name, device=device, memory_bytes=held_bytes)
            self._changed.set()

        try:
            while not await self._granted(key, name, device, memory_bytes):
                await self._changed.wait()
            log.info("memory.set_aside", name=name, device=device, memory_bytes=memory_bytes)
            yield resize
        finally:
            self._registry.cancel(key)
            self._aside.pop(key, None)
            self._changed.set()

    async def _granted(self, key: str, name: str, device: str, memory_bytes: int) -> bool:
        """Whether there is room now, which then is ours; no: who stands in the way will go. Raises NoRoom."""
        async with self._one_at_a_time:
            try:
                await self.make(key, device, memory_bytes)
            except Crowded:
                return False
            except OverBudget as error:
                if memory_bytes <= error.budget and device in self._aside.values():
                    return False
                raise ReservationRefused(name, error.needed, error.budget, error.in_use) from None
            self._aside[key] = device
            return True
