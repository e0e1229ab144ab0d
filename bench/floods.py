"""What an embedding waits beside floods of questions that cost no model: discovery, and listings of jobs.

    python -m bench.floods [--seconds 10] [--rate 5000] [--lists 50] [--jobs 1000]

One caller has one text embedded after the other: quiet, beside `$SRV.PING`, `.INFO` and `.STATS` at a fixed rate, and
beside programs that each ask for the list of jobs as soon as they have it.
"""

import argparse
import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime

import nats
import numpy as np
from nats.aio.client import Client

from service.jobs import setup
from subjects import names
from subjects.jobs import Job

from . import report
from .flood import Plan
from .load import Load, NatsCaller, closed_loop
from .overload import flooding
from .processes import nats_connection, url_of, worker

PACKAGES = ("torch", "nats-py")
TEXT = b'{"text": "def hello(): pass"}'
VERBS = ("PING", "INFO", "STATS")
SLOWER = 3.0
"""How many times its quiet p99 an embedding may take."""


async def embedding(nc: Client, seconds: float) -> Load:
    """One text after the other, for so long."""
    caller, latencies_ms = await NatsCaller.open(nc, names.EMBED), []
    began = time.perf_counter()
    while (sent := time.perf_counter()) < began + seconds:
        await caller(TEXT)
        latencies_ms.append((time.perf_counter() - sent) * 1000)
    return Load(time.perf_counter() - began, np.array(latencies_ms))


@asynccontextmanager
async def discovering(nc: Client, rate: float, seconds: float) -> AsyncIterator[None]:
    """Discovery at that rate, of its three verbs together."""
    async with AsyncExitStack() as stack:
        for verb in VERBS:
            plan = Plan(f"$SRV.{verb}.{names.SERVICE}", rate / len(VERBS), seconds, 0, [""])
            await stack.enter_async_context(flooding(nc, plan))
        await asyncio.sleep(1)
        yield


@asynccontextmanager
async def listing(nc: Client, callers: int) -> AsyncIterator[list[int]]:
    """So many programs that list jobs; each answer's bytes go into the list."""
    asking = [await NatsCaller.open(nc, names.JOBS_LIST) for _ in range(callers)]
    sizes: list[int] = []

    async def ask() -> None:
        await closed_loop(asking, [b"{}"] * 10**6, lambda _, reply: sizes.append(len(reply)))

    task = asyncio.create_task(ask())
    try:
        yield sizes
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def make_jobs(nc: Client, count: int) -> None:
    """Jobs that are over, in the bucket."""
    await setup.create(nc)
    bucket = await nc.jetstream().key_value(names.JOBS_BUCKET)
    at = datetime.now(UTC)
    job = Job(id="x", model="minilm", source="code", state="done", created_at=at, updated_at=at, notes=["a note " * 20])
    for number in range(count):
        made = job.model_copy(update={"id": f"job{number}", "job": f"job{number}"})
        await bucket.put(f"job.job{number}", made.model_dump_json(exclude_none=True).encode())


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.floods")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--rate", type=float, default=5000, help="of questions of discovery, a second")
    parser.add_argument("--lists", type=int, default=50, help="programs that list jobs")
    parser.add_argument("--jobs", type=int, default=1000, help="that there are")
    options = parser.parse_args()
    report.print_setting("bench.floods", PACKAGES, seconds=f"{options.seconds:g}")
    async with nats_connection() as nc:
        await make_jobs(nc, options.jobs)
        async with worker(nc), await nats.connect(url_of(nc)) as other:
            quiet = await embedding(nc, options.seconds)
            async with discovering(nc, options.rate, options.seconds + 1):
                discovery = await embedding(nc, options.seconds)
            async with listing(other, options.lists) as sizes:
                listed = await embedding(nc, options.seconds)
    name = f"beside {options.lists} x {names.JOBS_LIST} of {options.jobs}, {len(sizes) / listed.seconds:.0f} answers/s"
    loads = {"quiet": quiet, f"beside $SRV.* at {options.rate:g}/s": discovery, name: listed}
    rows = [
        [label, f"{load.rate:.1f}", *(f"{load.percentile_ms(percent):.1f}" for percent in (50, 99, 100))]
        for label, load in loads.items()
    ]
    report.print_table(["an embedding", "a second", "p50 ms", "p99 ms", "longest ms"], rows)
    for label, load in list(loads.items())[1:]:
        share = load.percentile_ms(99) / quiet.percentile_ms(99)
        report.print_target(f"{label}: p99, to quiet", share, SLOWER, at_most=True)


if __name__ == "__main__":
    asyncio.run(main())
