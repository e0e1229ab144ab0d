"""How models leave memory: evicted, replaced, unloaded or idle, and in each case once nobody uses them any more.

Which of them go is the registry's to say (models/registry.py).
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

import structlog

from models.errors import InUse, NotLoaded
from models.registry import LoadedModel, Registry

from ..runtime.background import Background
from ..runtime.change import Change
from .served import Served

log = structlog.get_logger(__name__)

Loaded: TypeAlias = LoadedModel[Served]


class Evictor:
    """give_back returns a device's memory to the system; changed is set whenever something has gone."""

    def __init__(
        self, registry: Registry[Served], background: Background, changed: Change, give_back: Callable[[str], None]
    ) -> None:
        self._registry = registry
        self._background = background
        self._changed = changed
        self._give_back = give_back

    async def unload(self, model: str, *, force: bool = False) -> Loaded:
        """Take a model out of memory -> what it was, once it is gone.

        force: although requests use it; they finish first. Raises NotLoaded, InUse.
        """
        resident = self._registry.current(model)
        if resident is None:
            raise NotLoaded(model)
        if resident.leases and not force:
            raise InUse(model, resident.leases)
        self._registry.retire(resident)
        self.free_unused(resident)
        while self._registry.holds(resident):
            await self._changed.wait()
        return resident

    def free_unused(self, resident: Loaded) -> None:
        """Free a retired model now, if nobody uses it; else the last lease that ends does."""
        if not resident.leases:
            self._background.spawn(self._free(resident), f"free.{resident.model}")

    async def _free(self, resident: Loaded) -> None:
        try:
            await resident.serves.close()
            await asyncio.to_thread(self._give_back, resident.device)
        finally:
            self._registry.forget(resident)
            self._changed.set()
        log.info("model.unloaded", model=resident.model, version=resident.version, memory_bytes=resident.memory_bytes)

    async def unload_idle(self, idle_s: float) -> None:
        """Unload, for ever, each model that nobody has used for so long."""
        while True:
            now = self._registry.clock()
            for resident in self._registry.idle_since(now - idle_s):
                self._registry.retire(resident)
                self.free_unused(resident)
            due = [resident.used_at + idle_s for resident in self._registry.idle_since(now)]
            with suppress(TimeoutError):
                async with asyncio.timeout(min(due) - now if due else None):
                    await self._changed.wait()
