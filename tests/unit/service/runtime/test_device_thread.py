"""The device's thread: what goes first, what runs inside what, and what ageing guarantees."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from service.runtime.device_thread import AGE_S, SHARE, DeviceThread


class Clock:
    """Time that passes when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def opened(clock: Clock | None = None) -> Iterator[DeviceThread]:
    device = DeviceThread(clock) if clock else DeviceThread()
    try:
        yield device
    finally:
        device.close()


async def started(*runs: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Hand jobs over, in this order."""
    tasks = [asyncio.create_task(run) for run in runs]
    await asyncio.sleep(0)  # each has its first step
    return tasks


@asynccontextmanager
async def occupied(device: DeviceThread, then: Callable[[], object] = lambda: None) -> AsyncIterator[asyncio.Task[Any]]:
    """While the context is open a job holds the device; on leaving it the job does `then` and ends."""
    entered, released = threading.Event(), threading.Event()

    def hold() -> object:
        entered.set()
        assert released.wait(30)
        return then()

    (task,) = await started(device.run(hold))
    assert await asyncio.to_thread(entered.wait, 10)
    try:
        yield task
    finally:
        released.set()


async def test_urgent_jobs_go_first_and_each_kind_in_order():
    log: list[str] = []
    with opened() as device:
        async with occupied(device):
            names = ["bulk 1", "urgent 1", "bulk 2", "urgent 2"]
            tasks = await started(*(device.run(log.append, name, urgent=name.startswith("urgent")) for name in names))
        await asyncio.gather(*tasks)
    assert log == ["urgent 1", "urgent 2", "bulk 1", "bulk 2"]


async def test_urgent_jobs_run_inside_a_job_that_yields():
    log: list[str] = []

    def yielding() -> str:
        log.append("begins")
        device.yield_point()
        log.append("ends")
        return "result"

    with opened() as device:
        async with occupied(device, yielding) as holder:
            tasks = await started(
                *(device.run(log.append, name, urgent=True) for name in ("urgent 1", "urgent 2")),
                device.run(log.append, "bulk"),
            )
        assert await holder == "result"
        await asyncio.gather(*tasks)
    assert log == ["begins", "urgent 1", "urgent 2", "ends", "bulk"]


async def test_an_urgent_job_is_not_interrupted():
    log: list[str] = []

    def yielding() -> None:
        device.yield_point()
        log.append("first")

    with opened() as device:
        async with occupied(device, lambda: device.yield_point()):
            tasks = await started(device.run(yielding, urgent=True), device.run(log.append, "second", urgent=True))
        await asyncio.gather(*tasks)
    assert log == ["first", "second"]


class Panic(BaseException):
    pass


@pytest.mark.parametrize("kind", [ValueError, Panic])
async def test_what_fails_inside_another_job_fails_alone(kind):
    def fail() -> None:
        raise kind

    def yielding() -> str:
        device.yield_point()
        return "result"

    with opened() as device:
        async with occupied(device, yielding) as holder:
            (inner,) = await started(device.run(fail, urgent=True))
        assert await holder == "result"
        with pytest.raises(kind):
            await inner
        assert await device.run(lambda: "next") == "next"


async def test_a_job_that_fails_after_it_gave_way_fails_alone():
    def yielding() -> None:
        device.yield_point()
        raise LookupError

    with opened() as device:
        async with occupied(device, yielding) as holder:
            (inner,) = await started(device.run(lambda: "result", urgent=True))
        with pytest.raises(LookupError):
            await holder
        assert await inner == "result"


async def test_a_caller_that_leaves_before_its_turn_costs_nothing():
    log: list[str] = []
    with opened() as device:
        async with occupied(device, lambda: device.yield_point()):
            tasks = await started(
                *(device.run(log.append, f"{urgent}", urgent=urgent) for urgent in (True, False)),
                device.run(log.append, "stays", urgent=True),
            )
            for task in tasks[:2]:
                task.cancel()
            await asyncio.gather(*tasks[:2], return_exceptions=True)
        await tasks[2]
        await device.run(log.append, "last")
    assert log == ["stays", "last"]


async def test_a_job_that_waits_has_its_turn_in_a_flood():
    clock, log = Clock(), []

    def urgent() -> None:
        clock.now += AGE_S / 4
        log.append("urgent")

    with opened(clock) as device:
        async with occupied(device):
            flood = await started(*(device.run(urgent, urgent=True) for _ in range(20)))
            bulk = await started(*(device.run(log.append, name) for name in ("bulk 1", "bulk 2")))
        await asyncio.gather(*flood, *bulk)
    # They have given way together; the first took no time, so they are still owed some.
    assert [log.index("bulk 1"), log.index("bulk 2")] == [5, 6]


async def test_jobs_that_follow_one_another_keep_a_share_together():
    """Else each would have to give way for AGE_S first, and many short ones would starve."""
    clock, log = Clock(), []

    def job(name: str, seconds: float) -> None:
        clock.now += seconds
        log.append(name)

    with opened(clock) as device:
        async with occupied(device):
            flood = await started(*(device.run(job, "urgent", 0.05, urgent=True) for _ in range(400)))
            bulk = await started(*(device.run(job, "bulk", 0.1) for _ in range(30)))
        await asyncio.gather(*flood, *bulk)
    while_bulk_ran = log[: len(log) - log[::-1].index("bulk")]
    urgent_s = 0.05 * while_bulk_ran.count("urgent")
    assert urgent_s == pytest.approx(AGE_S + 30 * 0.1 * (1 / SHARE - 1), abs=1.0)


async def test_what_ran_while_nobody_waited_is_no_debt():
    clock, log = Clock(), []

    def job(name: str, seconds: float) -> None:
        clock.now += seconds
        log.append(name)

    with opened(clock) as device:
        await device.run(job, "alone", 1000.0)
        async with occupied(device):
            flood = await started(*(device.run(job, "urgent", 0.25, urgent=True) for _ in range(20)))
            bulk = await started(device.run(job, "bulk", 0.25))
        await asyncio.gather(*flood, *bulk)
    assert 4 <= log.index("bulk") <= 6


async def test_a_job_that_runs_keeps_its_share_in_a_flood():
    clock, log = Clock(), []
    layer_s = 0.125

    def urgent() -> None:
        clock.now += layer_s
        log.append("urgent")

    def layers() -> None:
        for _ in range(50):
            clock.now += layer_s
            log.append("layer")
            device.yield_point()

    with opened(clock) as device:
        async with occupied(device, layers) as bulk:
            flood = await started(*(device.run(urgent, urgent=True) for _ in range(1000)))
        await asyncio.gather(bulk, *flood)
    while_it_ran = log[: len(log) - log[::-1].index("layer")]
    overtaken_s = while_it_ran.count("urgent") * layer_s
    # The first layer made no debt: nobody waited then.
    assert overtaken_s == pytest.approx(AGE_S + 49 * layer_s * (1 / SHARE - 1), abs=5 * layer_s)
    # Once it insists it goes on layer by layer: nobody waits for the whole of it.
    assert "layer layer layer" not in " ".join(while_it_ran[:-10])


async def test_sources_of_urgent_jobs_get_equal_time_whatever_their_jobs_take():
    clock, used = Clock(), {"embed": 0.0, "engine": 0.0}
    shares: list[float] = []

    def job(source: str, seconds: float) -> None:
        clock.now += seconds
        used[source] += seconds
        shares.append(used["embed"] - used["engine"])

    with opened(clock) as device:
        async with occupied(device):
            embeds = (device.run(job, "embed", 0.5, urgent=True, source="embed") for _ in range(8))
            steps = (device.run(job, "engine", 0.125, urgent=True, source="engine") for _ in range(32))
            tasks = await started(*embeds, *steps)
        await asyncio.gather(*tasks)
    assert max(map(abs, shares)) <= 0.5
    assert shares[-1] == 0


async def test_a_source_that_comes_late_has_nothing_saved_up():
    clock, log = Clock(), []

    def job(source: str) -> None:
        clock.now += 1.0
        log.append(source)

    async def run(device: DeviceThread, source: str, jobs: int) -> list[asyncio.Task[Any]]:
        return await started(*(device.run(job, source, urgent=True, source=source) for _ in range(jobs)))

    with opened(clock) as device:
        await asyncio.gather(*await run(device, "engine", 100))
        async with occupied(device):
            tasks = [*await run(device, "embed", 6), *await run(device, "engine", 6)]
        await asyncio.gather(*tasks)
        del log[:100]
    for place in range(2, len(log) + 1):
        assert abs(log[:place].count("engine") - log[:place].count("embed")) <= 2


async def test_steps_of_an_engine_run_inside_a_job_that_yields_and_leave_it_its_share():
    clock, log = Clock(), []

    def urgent(source: str) -> None:
        clock.now += 0.25
        log.append(source)

    def layers() -> None:
        for _ in range(20):
            clock.now += 0.25
            log.append("layer")
            device.yield_point()

    with opened(clock) as device:
        async with occupied(device, layers) as bulk:
            flood = await started(
                *(
                    device.run(urgent, name, urgent=True, source=name)
                    for _ in range(200)
                    for name in ("embed", "engine")
                )
            )
        await asyncio.gather(bulk, *flood)
    while_it_ran = log[: len(log) - log[::-1].index("layer")]
    assert while_it_ran.count("embed") == pytest.approx(while_it_ran.count("engine"), abs=1)
    urgent_s = 0.25 * (len(while_it_ran) - 20)
    assert urgent_s == pytest.approx(AGE_S + 19 * 0.25 * (1 / SHARE - 1), abs=1.5)


async def test_what_waits_when_it_closes_is_cancelled():
    log: list[str] = []
    with opened() as device:
        async with occupied(device, lambda: device.yield_point()) as holder:
            tasks = await started(*(device.run(log.append, "late", urgent=urgent) for urgent in (True, False)))
            device.close()
            results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        await holder
        with pytest.raises(RuntimeError):
            await device.run(log.append, "later")
    assert [type(result) for result in results] == [asyncio.CancelledError] * 2
    assert log == []
