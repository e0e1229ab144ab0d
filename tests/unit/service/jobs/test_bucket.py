"""One reading for all who ask at the same time."""

import asyncio

import pytest

from service.jobs.bucket import SharedRead


async def test_who_asks_during_a_reading_gets_the_next_one() -> None:
    begun, goes_on = asyncio.Queue[int](), asyncio.Semaphore(0)
    readings = 0

    async def read() -> int:
        nonlocal readings
        readings += 1
        begun.put_nowait(readings)
        await goes_on.acquire()
        return readings

    shared = SharedRead(read)
    first = asyncio.create_task(shared.result())
    await begun.get()
    later = [asyncio.create_task(shared.result()) for _ in range(50)]
    await asyncio.sleep(0)
    goes_on.release()
    assert await first == 1
    await begun.get()
    goes_on.release()
    assert await asyncio.gather(*later) == [2] * 50


async def test_a_reading_that_fails_or_is_cancelled_is_nobody_elses() -> None:
    outcomes = iter([ValueError("away"), None, None])
    begun = asyncio.Queue[None]()
    held = asyncio.Event()

    async def read() -> str:
        begun.put_nowait(None)
        if error := next(outcomes):
            raise error
        await held.wait()
        return "read"

    shared = SharedRead(read)
    failing, cancelled, last = (asyncio.create_task(shared.result()) for _ in range(3))
    with pytest.raises(ValueError, match="away"):
        await failing
    await begun.get()
    await begun.get()
    cancelled.cancel()
    held.set()
    assert await last == "read"
