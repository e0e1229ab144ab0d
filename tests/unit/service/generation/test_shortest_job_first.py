"""Jobs that wait for a few threads: short ones before long ones, and none for ever."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest

from service.generation.shortest_job_first import ShortestJobFirst


@asynccontextmanager
async def occupied(pool: ShortestJobFirst) -> AsyncIterator[None]:
    """While the context is open a job holds the one thread."""
    entered, released = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert released.wait(30)

    holding = asyncio.create_task(pool.run(0, hold))
    assert await asyncio.to_thread(entered.wait, 10)
    try:
        yield
    finally:
        released.set()
        await holding


async def started(pool: ShortestJobFirst, log: list[int], *sizes: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(pool.run(size, log.append, size)) for size in sizes]
    await asyncio.sleep(0)  # each has its first step
    return tasks


@pytest.mark.parametrize(("unit_s", "order"), [(1.0, [1, 10, 1000]), (1e-12, [1000, 1, 10])])
async def test_short_goes_before_long_that_came_a_little_earlier_and_not_before_what_has_waited(unit_s, order):
    log: list[int] = []
    with closing(ShortestJobFirst(1, unit_s, "test")) as pool:
        async with occupied(pool):
            tasks = await started(pool, log, 1000, 1, 10)
        await asyncio.gather(*tasks)
    assert log == order


class Panic(BaseException):
    """As Rust's in Python."""


@pytest.mark.parametrize("kind", [ValueError, Panic])
async def test_what_fails_fails_alone(kind):
    def fail() -> None:
        raise kind

    with closing(ShortestJobFirst(1, 1.0, "test")) as pool:
        with pytest.raises(kind):
            await pool.run(1, fail)
        assert await pool.run(1, lambda: "next") == "next"


async def test_a_cancelled_job_costs_nothing_and_jobs_that_wait_at_the_end_are_cancelled():
    log: list[int] = []
    with closing(ShortestJobFirst(1, 1.0, "test")) as pool:
        async with occupied(pool):
            left, waits = await started(pool, log, 1, 2)
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            pool.close()
            (result,) = await asyncio.gather(waits, return_exceptions=True)
    assert isinstance(result, asyncio.CancelledError)
    assert log == []
