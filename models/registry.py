"""Bookkeeping of the models in memory: their users, their sizes, the order of eviction, and recent failures.

For one owner in one thread. Nothing is loaded, freed or waited for here.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from .errors import Crowded, OverBudget

T = TypeVar("T")
FAILURE_REMEMBERED_S = 30.0


@dataclass(slots=True, eq=False)
class LoadedModel(Generic[T]):
    """A loaded model. serves: the object that answers requests. leases: its users now. used_at: clock, in seconds.

    retired: it takes no new lease, and is to be freed when the last one ends.
    """

    model: str
    version: str
    device: str
    memory_bytes: int
    serves: T
    pinned: bool = False
    leases: int = 0
    used_at: float = 0.0
    retired: bool = False


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a model could not be loaded, and until when (clock, seconds) that is not tried again."""

    error: Exception
    until: float


@dataclass(slots=True)
class Registry(Generic[T]):
    """Models in memory. budget: bytes that models may take on a device."""

    budget: Callable[[str], int]
    clock: Callable[[], float] = time.monotonic
    failure_remembered_s: float = FAILURE_REMEMBERED_S
    _current: dict[str, LoadedModel[T]] = field(default_factory=dict)
    _retired: set[LoadedModel[T]] = field(default_factory=set)
    _reserved: dict[str, tuple[str, int]] = field(default_factory=dict)
    _failures: dict[str, Failure] = field(default_factory=dict)

    def current(self, model: str) -> LoadedModel[T] | None:
        """The loaded model that takes new leases, if there is one."""
        return self._current.get(model)

    def __iter__(self) -> Iterator[LoadedModel[T]]:
        """The models that take new leases, in the order in which they were loaded."""
        return iter(self._current.values())

    def everything(self) -> list[LoadedModel[T]]:
        """All models in memory, retired ones included."""
        return [*self._current.values(), *self._retired]

    def in_memory(self, loaded: LoadedModel[T]) -> bool:
        """Whether it still takes memory."""
        return loaded in self._retired or self._current.get(loaded.model) is loaded

    def devices(self) -> list[str]:
        return list(dict.fromkeys(loaded.device for loaded in self.everything()))

    # Leases

    def lease(self, loaded: LoadedModel[T]) -> T:
        """Count one more user."""
        loaded.leases += 1
        loaded.used_at = self.clock()
        return loaded.serves

    def release(self, loaded: LoadedModel[T]) -> bool:
        """Count one user less -> whether it is retired and was the last, so that it must be freed, then forgotten."""
        loaded.leases -= 1
        loaded.used_at = self.clock()
        return loaded.retired and loaded.leases == 0

    # Memory

    def used_bytes(self, device: str) -> int:
        """Bytes of all models on a device: current ones, retired ones until they are forgotten, and reservations."""
        reserved = sum(size for where, size in self._reserved.values() if where == device)
        return reserved + sum(loaded.memory_bytes for loaded in self.everything() if loaded.device == device)

    def reserve(self, key: str, device: str, memory_bytes: int) -> list[LoadedModel[T]]:
        """Reserve memory under a key -> the models that have to be freed for it, already retired.

        key: of a load the model's id. The least recently used goes first. Models in use, pinned ones and the model of
        that id, which serves until its successor does, stay. Raises OverBudget, or Crowded if it would fit without
        those in use; then no model is evicted, and nothing is reserved under this key.
        """
        self.cancel(key)
        evicted = self._choose_evictions(key, device, memory_bytes)
        self._reserved[key] = (device, memory_bytes)
        for loaded in evicted:
            self.retire(loaded)
        return evicted

    def cancel(self, key: str) -> None:
        """Drop a reservation."""
        self._reserved.pop(key, None)

    def _choose_evictions(self, key: str, device: str, memory_bytes: int) -> list[LoadedModel[T]]:
        budget = self.budget(device)
        here = [loaded for loaded in self.everything() if loaded.device == device]
        used = self.used_bytes(device)
        # Retired models that are not used any more are being freed.
        used -= sum(loaded.memory_bytes for loaded in here if loaded.retired and not loaded.leases)
        replaceable = [each for each in here if not each.pinned and not each.retired and each.model != key]
        evicted: list[LoadedModel[T]] = []
        for loaded in sorted((each for each in replaceable if not each.leases), key=lambda each: each.used_at):
            if used + memory_bytes <= budget:
                break
            evicted.append(loaded)
            used -= loaded.memory_bytes
        if used + memory_bytes > budget:
            in_use = [each for each in here if each.leases and (each in replaceable or each.retired)]
            fixed = used - sum(loaded.memory_bytes for loaded in in_use)
            if fixed + memory_bytes <= budget:
                raise Crowded(key, memory_bytes, budget, used, tuple(dict.fromkeys(each.model for each in in_use)))
            raise OverBudget(key, memory_bytes, budget, fixed)
        return evicted

    def fits(self, device: str) -> bool:
        """Whether models and reservations are within the device's budget."""
        return self.used_bytes(device) <= self.budget(device)

    # Changes

    def publish(self, loaded: LoadedModel[T]) -> LoadedModel[T] | None:
        """Give out leases of this model from now on -> the one that it replaces, retired."""
        self._reserved.pop(loaded.model, None)
        self._failures.pop(loaded.model, None)
        old = self._current.get(loaded.model)
        if old is not None:
            self.retire(old)
        loaded.used_at = self.clock()
        self._current[loaded.model] = loaded
        return old

    def retire(self, loaded: LoadedModel[T]) -> None:
        """Give out no more leases of a model. It counts as memory until it is forgotten."""
        loaded.retired = True
        if self._current.get(loaded.model) is loaded:
            del self._current[loaded.model]
        self._retired.add(loaded)

    def forget(self, loaded: LoadedModel[T]) -> None:
        """Note that a model's memory has been freed."""
        self._retired.discard(loaded)

    def idle_since(self, moment: float) -> list[LoadedModel[T]]:
        """Unpinned models that have not been in use since `moment` (clock, seconds)."""
        return [each for each in self if not each.pinned and not each.leases and each.used_at <= moment]

    # Failures

    def fail(self, model: str, error: Exception) -> None:
        """Remember for a while that a load failed."""
        self._reserved.pop(model, None)
        self._failures[model] = Failure(error, self.clock() + self.failure_remembered_s)

    def failure(self, model: str) -> Failure | None:
        """The failure that is still remembered, if any."""
        failure = self._failures.get(model)
        if failure is not None and failure.until <= self.clock():
            del self._failures[model]
            return None
        return failure
