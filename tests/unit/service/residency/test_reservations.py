"""Memory reserved for work beside the models: what is evicted, who waits, and that it is always given back."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager

import pytest
from fake_encoder import FakeEncoder
from fake_loader import GB, FakeLoader

from models.catalogue import load_catalogue
from models.errors import OverBudget
from service.embedding.embedder import Embedder
from service.embedding.pending_text import BatchLimits
from service.residency.manager import ModelManager
from service.residency.reservations import ReservationRefused
from service.runtime.device_thread import DeviceThread
from service.settings.serving import MemorySettings
from service.telemetry import Telemetry

OWN = {name: {"kind": "embedding", "folder": name} for name in ("a", "b", "c")}
KINDS = {"embedding": "a", "generation": "a"}


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader(budget_bytes=3 * GB)


@contextmanager
def models_of(loader: FakeLoader, **memory: object) -> Iterator[ModelManager]:
    device, telemetry = DeviceThread(), Telemetry()

    def serving(model: FakeEncoder) -> Embedder:
        return Embedder(model, device, BatchLimits(64, 8, 100, 1000), telemetry)

    def died(error: BaseException) -> None:
        raise AssertionError(error)

    try:
        yield ModelManager(load_catalogue(OWN), loader, serving, KINDS, died, MemorySettings(**memory))
    finally:
        device.close()


@pytest.fixture
async def manager(loader: FakeLoader) -> AsyncIterator[ModelManager]:
    with models_of(loader) as made:
        async with made.running():
            yield made


def loaded(manager: ModelManager) -> set[str]:
    return {model.model for model in manager.registry}


def used(manager: ModelManager) -> int:
    return manager.registry.used_bytes("cpu")


class Work:
    """Work with a reservation: `has` is set while it has the memory, `done` lets it end."""

    def __init__(self, manager: ModelManager, memory_bytes: int, name: str = "work") -> None:
        self.has, self.done = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._run(manager, memory_bytes, name))

    async def _run(self, manager: ModelManager, memory_bytes: int, name: str) -> None:
        async with manager.reservations.reserve(name, "cpu", memory_bytes):
            self.has.set()
            await self.done.wait()

    async def holds(self) -> None:
        async with asyncio.timeout(20):
            await self.has.wait()

    async def end(self) -> None:
        self.done.set()
        await asyncio.wait_for(self.task, 20)

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        assert self.task.cancelled()


async def settled() -> None:
    """All that can run without an event from outside has run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_idle_models_go_the_least_recently_used_first(loader: FakeLoader, manager: ModelManager) -> None:
    for name in ("a", "b", "c"):
        await manager.load(name)
    async with manager.embedder("a"):
        pass
    async with manager.reservations.reserve("work", "cpu", GB):
        assert loaded(manager) == {"a", "c"}
        assert used(manager) == 3 * GB
    assert used(manager) == 2 * GB
    assert loader.given_back == ["cpu"]


async def test_models_in_use_are_waited_for(manager: ModelManager) -> None:
    await manager.load("a")
    async with AsyncExitStack() as users:
        await users.enter_async_context(manager.embedder("a"))
        work = Work(manager, 3 * GB)
        await settled()
        assert not work.has.is_set()
        assert loaded(manager) == {"a"}
        await users.enter_async_context(manager.embedder("a"))  # requests go on meanwhile
    await work.holds()
    assert loaded(manager) == set()
    await work.end()
    assert used(manager) == 0


async def test_a_reservation_that_waits_can_be_cancelled(manager: ModelManager) -> None:
    await manager.load("a")
    async with manager.embedder("a"):
        work = Work(manager, 3 * GB)
        await settled()
        await work.cancel()
    assert loaded(manager) == {"a"}
    assert used(manager) == GB


async def test_cancelled_while_a_model_is_evicted_it_gives_all_back(loader: FakeLoader, manager: ModelManager) -> None:
    await manager.load("a")
    released, leaving = asyncio.Event(), asyncio.Event()
    loaded_model = manager.registry.current("a")
    assert loaded_model is not None
    close = loaded_model.serves.close

    async def slowly() -> None:
        leaving.set()
        await released.wait()
        await close()

    loaded_model.serves.close = slowly  # type: ignore[method-assign]
    work = Work(manager, 3 * GB)
    await asyncio.wait_for(leaving.wait(), 20)
    await work.cancel()
    released.set()
    async with manager.reservations.reserve("next", "cpu", 3 * GB):
        assert used(manager) == 3 * GB
    assert used(manager) == 0


async def test_what_can_never_fit_is_refused(manager: ModelManager) -> None:
    with pytest.raises(ReservationRefused, match=r"work needs 3.50 GB of memory.*leave it 3.00 of 3.00 GB"):
        async with manager.reservations.reserve("work", "cpu", int(3.5 * GB)):
            pass
    assert used(manager) == 0


async def test_pinned_models_stay(manager: ModelManager) -> None:
    await manager.load("a", pin=True)
    await manager.load("b")
    with pytest.raises(OverBudget, match=r"leave it 2.00 of 3.00 GB; let it need less, unpin a model"):
        async with manager.reservations.reserve("work", "cpu", int(2.5 * GB)):
            pass
    assert loaded(manager) == {"a", "b"}
    async with manager.reservations.reserve("work", "cpu", 2 * GB):
        assert loaded(manager) == {"a"}


async def test_loads_respect_it_and_find_memory_again_after_it(
    manager: ModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.residency.load_queue.CROWDED_S", 0)
    await manager.load("a")
    async with manager.reservations.reserve("work", "cpu", 2 * GB):
        async with manager.embedder("a"):
            with pytest.raises(OverBudget):
                await manager.load("b")
        await manager.load("b")  # `a`, idle now, goes for it
        assert loaded(manager) == {"b"}
        assert used(manager) == 3 * GB
    async with manager.embedder("a"):
        assert loaded(manager) == {"a", "b"}


async def test_it_waits_for_a_load_that_is_under_way(loader: FakeLoader, manager: ModelManager) -> None:
    loader.gate.clear()
    load = asyncio.create_task(manager.load("a"))
    await asyncio.to_thread(loader.entered.wait, 20)
    work = Work(manager, 3 * GB)
    await settled()
    assert not work.has.is_set()
    loader.gate.set()
    await load
    await work.holds()
    assert loaded(manager) == set()
    await work.end()


async def test_works_share_and_wait_for_each_other(manager: ModelManager) -> None:
    first, second = Work(manager, 2 * GB, "same"), Work(manager, GB, "same")
    await first.holds()
    await second.holds()
    assert used(manager) == 3 * GB
    third = Work(manager, 3 * GB, "same")
    await settled()
    await first.end()
    await settled()
    assert not third.has.is_set()
    await second.end()
    await third.holds()
    assert used(manager) == 3 * GB
    await third.end()
    assert used(manager) == 0


async def test_work_that_fails_gives_its_memory_back(manager: ModelManager) -> None:
    with pytest.raises(ZeroDivisionError):
        async with manager.reservations.reserve("work", "cpu", GB):
            raise ZeroDivisionError
    assert used(manager) == 0


async def test_it_is_resized(manager: ModelManager) -> None:
    await manager.load("a", pin=True)
    await manager.load("b")
    async with manager.reservations.reserve("work", "cpu", GB // 2) as resize:
        resize(2 * GB)
        async with manager.reservations.reserve("other", "cpu", 0):  # waits until `b` is gone
            assert (loaded(manager), used(manager)) == ({"a"}, 3 * GB)
        resize(3 * GB)  # it stays as it is
        assert used(manager) == 3 * GB
        resize(GB)
        await manager.load("b")
        assert (loaded(manager), used(manager)) == ({"a", "b"}, 3 * GB)
    assert used(manager) == 2 * GB
