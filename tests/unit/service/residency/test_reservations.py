"""Memory set aside for work beside the models: who goes for it, who waits, and that it comes back whatever happens."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager

import pytest
from fake_encoder import FakeEncoder
from fake_loader import GB, FakeLoader

from models.catalogue import load_catalogue
from models.errors import OverBudget
from service.config import MemorySettings
from service.embedding.embedder import Embedder
from service.embedding.work import BatchLimits
from service.residency.manager import ModelManager
from service.residency.reservations import ReservationRefused
from service.runtime.device_thread import DeviceThread
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
async def residency(loader: FakeLoader) -> AsyncIterator[ModelManager]:
    with models_of(loader) as made:
        async with made.running():
            yield made


def loaded(residency: ModelManager) -> set[str]:
    return {resident.model for resident in residency.registry}


def used(residency: ModelManager) -> int:
    return residency.registry.used_bytes("cpu")


class Work:
    """Work that sets memory aside: `has` is set while it has it, `done` lets it end."""

    def __init__(self, residency: ModelManager, memory_bytes: int, name: str = "work") -> None:
        self.has, self.done = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._run(residency, memory_bytes, name))

    async def _run(self, residency: ModelManager, memory_bytes: int, name: str) -> None:
        async with residency.set_aside(name, "cpu", memory_bytes):
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


async def test_idle_models_go_the_least_recently_used_first(loader: FakeLoader, residency: ModelManager) -> None:
    for name in ("a", "b", "c"):
        await residency.load(name)
    async with residency.embedder("a"):
        pass
    async with residency.set_aside("work", "cpu", GB):
        assert loaded(residency) == {"a", "c"}
        assert used(residency) == 3 * GB
    assert used(residency) == 2 * GB
    assert loader.given_back == ["cpu"]


async def test_models_in_use_are_waited_for(residency: ModelManager) -> None:
    await residency.load("a")
    async with AsyncExitStack() as users:
        await users.enter_async_context(residency.embedder("a"))
        work = Work(residency, 3 * GB)
        await settled()
        assert not work.has.is_set()
        assert loaded(residency) == {"a"}
        await users.enter_async_context(residency.embedder("a"))  # requests go on meanwhile
    await work.holds()
    assert loaded(residency) == set()
    await work.end()
    assert used(residency) == 0


async def test_who_waits_can_leave(residency: ModelManager) -> None:
    await residency.load("a")
    async with residency.embedder("a"):
        work = Work(residency, 3 * GB)
        await settled()
        await work.cancel()
    assert loaded(residency) == {"a"}
    assert used(residency) == GB


async def test_cancelled_while_a_model_leaves_it_gives_all_back(loader: FakeLoader, residency: ModelManager) -> None:
    await residency.load("a")
    released, leaving = asyncio.Event(), asyncio.Event()
    resident = residency.registry.current("a")
    assert resident is not None
    close = resident.serves.close

    async def slowly() -> None:
        leaving.set()
        await released.wait()
        await close()

    resident.serves.close = slowly  # type: ignore[method-assign]
    work = Work(residency, 3 * GB)
    await asyncio.wait_for(leaving.wait(), 20)
    await work.cancel()
    released.set()
    async with residency.set_aside("next", "cpu", 3 * GB):
        assert used(residency) == 3 * GB
    assert used(residency) == 0


async def test_what_can_never_fit_is_refused(residency: ModelManager) -> None:
    with pytest.raises(ReservationRefused, match=r"work needs 3.50 GB of memory.*leave it 3.00 of 3.00 GB"):
        async with residency.set_aside("work", "cpu", int(3.5 * GB)):
            pass
    assert used(residency) == 0


async def test_pinned_models_stay(residency: ModelManager) -> None:
    await residency.load("a", pin=True)
    await residency.load("b")
    with pytest.raises(OverBudget, match=r"leave it 2.00 of 3.00 GB; let it need less, unpin a model"):
        async with residency.set_aside("work", "cpu", int(2.5 * GB)):
            pass
    assert loaded(residency) == {"a", "b"}
    async with residency.set_aside("work", "cpu", 2 * GB):
        assert loaded(residency) == {"a"}


async def test_loads_respect_it_and_find_room_again_after_it(
    residency: ModelManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.residency.manager.ROOM_PATIENCE_S", 0)
    await residency.load("a")
    async with residency.set_aside("work", "cpu", 2 * GB):
        async with residency.embedder("a"):
            with pytest.raises(OverBudget):
                await residency.load("b")
        await residency.load("b")  # `a`, idle now, goes for it
        assert loaded(residency) == {"b"}
        assert used(residency) == 3 * GB
    async with residency.embedder("a"):
        assert loaded(residency) == {"a", "b"}


async def test_it_waits_for_a_load_that_is_under_way(loader: FakeLoader, residency: ModelManager) -> None:
    loader.gate.clear()
    load = asyncio.create_task(residency.load("a"))
    await asyncio.to_thread(loader.entered.wait, 20)
    work = Work(residency, 3 * GB)
    await settled()
    assert not work.has.is_set()
    loader.gate.set()
    await load
    await work.holds()
    assert loaded(residency) == set()
    await work.end()


async def test_works_share_and_wait_for_each_other(residency: ModelManager) -> None:
    first, second = Work(residency, 2 * GB, "same"), Work(residency, GB, "same")
    await first.holds()
    await second.holds()
    assert used(residency) == 3 * GB
    third = Work(residency, 3 * GB, "same")
    await settled()
    await first.end()
    await settled()
    assert not third.has.is_set()
    await second.end()
    await third.holds()
    assert used(residency) == 3 * GB
    await third.end()
    assert used(residency) == 0


async def test_work_that_fails_gives_its_memory_back(residency: ModelManager) -> None:
    with pytest.raises(ZeroDivisionError):
        async with residency.set_aside("work", "cpu", GB):
            raise ZeroDivisionError
    assert used(residency) == 0


async def test_it_is_resized(residency: ModelManager) -> None:
    await residency.load("a", pin=True)
    await residency.load("b")
    async with residency.set_aside("work", "cpu", GB // 2) as resize:
        resize(2 * GB)
        async with residency.set_aside("other", "cpu", 0):  # waits until `b` is gone
            assert (loaded(residency), used(residency)) == ({"a"}, 3 * GB)
        resize(3 * GB)  # it stays as it is
        assert used(residency) == 3 * GB
        resize(GB)
        await residency.load("b")
        assert (loaded(residency), used(residency)) == ({"a", "b"}, 3 * GB)
    assert used(residency) == 2 * GB
