"""Which models are in memory: who uses them, what they take, which goes first, and what failed lately.

Pure bookkeeping for one owner in one thread: it loads nothing, frees nothing and waits for nothing. Knows no torch.
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
    """A loaded model. serves: what answers for it. leases: how many use it now. used_at: clock, in seconds.

    retired: it takes no new lease, and goes when the last one ends.
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
    """Why a model could not be loaded, and until when (clock, seconds) nobody tries again."""

    error: Exception
    until: float


@dataclass(slots=True)
class Registry(Generic[T]):
    """budget: for a device, the bytes that models may take on it."""

    budget: Callable[[str], int]
    clock: Callable[[], float] = time.monotonic
    failure_remembered_s: float = FAILURE_REMEMBERED_S
    _current: dict[str, LoadedModel[T]] = field(default_factory=dict)
    _retired: set[LoadedModel[T]] = field(default_factory=set)
    _reserved: dict[str, tuple[str, int]] = field(default_factory=dict)
    _failures: dict[str, Failure] = field(default_factory=dict)

    def current(self, model: str) -> LoadedModel[T] | None:
        """The resident that takes new leases, if there is one."""
        return self._current.get(model)

    def __iter__(self) -> Iterator[LoadedModel[T]]:
        """Those that take new leases, in the order in which they were loaded."""
        return iter(self._current.values())

    def everything(self) -> list[LoadedModel[T]]:
        """All that is in memory, those that are about to go included."""
        return [*self._current.values(), *self._retired]

    def holds(self, resident: LoadedModel[T]) -> bool:
        """Whether it still takes memory."""
        return resident in self._retired or self._current.get(resident.model) is resident

    def devices(self) -> list[str]:
        """Where there is anything in memory."""
        return list(dict.fromkeys(resident.device for resident in self.everything()))

    # Leases

    def lease(self, resident: LoadedModel[T]) -> T:
        """Count one more user."""
        resident.leases += 1
        resident.used_at = self.clock()
        return resident.serves

    def release(self, resident: LoadedModel[T]) -> bool:
        """Count one user less -> whether nobody needs it any more, so that it must be freed and then forgotten."""
        resident.leases -= 1
        resident.used_at = self.clock()
        return resident.retired and resident.leases == 0

    # Room

    def used_bytes(self, device: str) -> int:
        """What all models on a device take: current, retired and not yet forgotten, about to be loaded."""
        reserved = sum(size for where, size in self._reserved.values() if where == device)
        return reserved + sum(resident.memory_bytes for resident in self.everything() if resident.device == device)

    def reserve(self, model: str, device: str, memory_bytes: int) -> list[LoadedModel[T]]:
        """Set memory aside for a load -> the residents that have to go for it, already retired.

        The least recently used goes first. Those in use, pinned ones and the model itself, which serves until its
        successor does, stay. Raises OverBudget, or Crowded where it is those in use that stand in the way; then
        nothing has changed.
        """
        self.cancel(model)
        leaving = self._leaving(model, device, memory_bytes)
        self._reserved[model] = (device, memory_bytes)
        for resident in leaving:
            self.retire(resident)
        return leaving

    def cancel(self, model: str) -> None:
        """Give back what was set aside."""
        self._reserved.pop(model, None)

    def _leaving(self, model: str, device: str, memory_bytes: int) -> list[LoadedModel[T]]:
        budget = self.budget(device)
        here = [resident for resident in self.everything() if resident.device == device]
        used = self.used_bytes(device)
        # What has been retired and is not used any more is about to go by itself.
        used -= sum(resident.memory_bytes for resident in here if resident.retired and not resident.leases)
        movable = [r for r in here if not r.pinned and not r.retired and r.model != model]
        leaving: list[LoadedModel[T]] = []
        for resident in sorted((r for r in movable if not r.leases), key=lambda r: r.used_at):
            if used + memory_bytes <= budget:
                break
            leaving.append(resident)
            used -= resident.memory_bytes
        if used + memory_bytes > budget:
            in_use = [r for r in here if r.leases and (r in movable or r.retired)]
            fixed = used - sum(resident.memory_bytes for resident in in_use)
            if fixed + memory_bytes <= budget:
                raise Crowded(model, memory_bytes, budget, used, tuple(dict.fromkeys(r.model for r in in_use)))
            raise OverBudget(model, memory_bytes, budget, fixed)
        return leaving

    def fits(self, device: str) -> bool:
        """Whether what is in memory now, or about to be, is within the device's budget."""
        return self.used_bytes(device) <= self.budget(device)

    # Coming and going

    def publish(self, resident: LoadedModel[T]) -> LoadedModel[T] | None:
        """Let new leases see this resident from now on -> the one that it replaces, retired."""
        self._reserved.pop(resident.model, None)
        self._failures.pop(resident.model, None)
        old = self._current.get(resident.model)
        if old is not None:
            self.retire(old)
        resident.used_at = self.clock()
        self._current[resident.model] = resident
        return old

    def retire(self, resident: LoadedModel[T]) -> None:
        """Give out no more leases of it. It counts as memory until it is forgotten."""
        resident.retired = True
        if self._current.get(resident.model) is resident:
            del self._current[resident.model]
        self._retired.add(resident)

    def forget(self, resident: LoadedModel[T]) -> None:
        """Its memory has been given back."""
        self._retired.discard(resident)

    def idle_since(self, moment: float) -> list[LoadedModel[T]]:
        """Unpinned residents that nobody uses and nobody has used since `moment` (clock, seconds)."""
        return [r for r in self._current.values() if not r.pinned and not r.leases and r.used_at <= moment]

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
