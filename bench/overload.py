"""What a worker still does when it is asked for ten times what it can do.

    python -m bench.overload [--times 10] [--seconds 10] [--deadlines 2 5 10] [--rounds 3]

Requests come at a fixed rate, whether or not they are answered (bench/flood.py). Goodput is what is answered within
its deadline, a second, once the worker is full. It is held against what the same worker serves to callers who wait for
their answers while a responder beside it, which only echoes, gets the rest of that flood: receiving it costs all.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from statistics import median

import numpy as np
from nats.aio.client import Client

from . import corpus, report
from .flood import Outcome, Plan
from .load import NatsCaller
from .processes import nats_connection, running, url_of, worker
from .responders import FLOOR

PACKAGES = ("torch", "transformers", "nats-py")
GOODPUT = 0.9
REFUSAL_MS = MANAGEMENT_MS = 100
TOKENS = 16
HEADINGS = [
    "",
    "capacity/s",
    "asked/s",
    "beside an echo/s",
    "in time/s",
    "late/other",
    "refused p99 ms",
    "managed p95 ms",
]


@dataclass(frozen=True, slots=True)
class Kind:
    """Requests of one kind. callers: who bring the worker to its capacity."""

    name: str
    subject: str
    bodies: list[str]
    callers: int


def kinds() -> list[Kind]:
    """Embedding of functions, and short completions of their beginnings."""
    functions = corpus.functions(512, seed=1)
    short = {"max_tokens": TOKENS, "min_tokens": TOKENS}
    return [
        Kind("embedding", "ml.embed", [json.dumps({"text": text}) for text in functions], 64),
        Kind("generation", "ml.generate", [json.dumps({"prompt": text[:200]} | short) for text in functions], 8),
    ]


async def capacity(nc: Client, kind: Kind, seconds: float) -> float:
    """Requests a second that callers get answered who each have one outstanding."""
    bodies, answered = itertools.cycle(kind.bodies), 0

    async def keep_asking(caller: NatsCaller) -> None:
        nonlocal answered
        for body in bodies:
            await caller(body.encode())
            answered += 1

    callers = [await NatsCaller.open(nc, kind.subject) for _ in range(kind.callers)]
    tasks = [asyncio.create_task(keep_asking(caller)) for caller in callers]
    await asyncio.sleep(1)
    before, began = answered, time.monotonic()
    await asyncio.sleep(seconds)
    rate = (answered - before) / (time.monotonic() - began)
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError):
            await task
    return rate


@asynccontextmanager
async def flooding(nc: Client, plan: Plan) -> AsyncIterator["asyncio.Task[Outcome]"]:
    """A flood in a process of its own; the task brings what came of it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.flood", url_of(nc).removeprefix("nats://"), stdin=-1, stdout=-1
    )
    output = asyncio.create_task(process.communicate(json.dumps(asdict(plan)).encode()))

    async def outcome() -> Outcome:
        printed, _ = await output
        return Outcome(**json.loads(printed))

    task = asyncio.create_task(outcome())
    try:
        yield task
        await task
    finally:
        if process.returncode is None:
            process.kill()


async def managed(nc: Client, seconds: float) -> list[float]:
    """How long each question about the models waited, in milliseconds; who got no answer waited ten seconds."""
    waited: list[float] = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.monotonic()
        await nc.request("ml.models.list", b"", timeout=10)
        waited.append(1000 * (time.monotonic() - began))
        await asyncio.sleep(0.1)
    return waited


def percentile(values: Sequence[float], percent: float) -> float:
    """Or 0 where there are none."""
    return float(np.percentile(values, percent)) if values else 0.0


async def measure(nc: Client, kind: Kind, options: argparse.Namespace) -> list[list[str]]:
    """Both loads in turn, with each deadline -> rows of the table, of the rounds' medians."""
    capacity_s = await capacity(nc, kind, options.seconds)
    rows = []
    for deadline_s in options.deadlines:
        name = f"{kind.name}, {deadline_s:g} s"
        rounds = [await one_round(nc, kind, capacity_s, deadline_s, options) for _ in range(options.rounds)]
        shares = [figures[2] / figures[1] for figures in rounds]
        print(f"{name}: shares of the goodput in the rounds", " ".join(f"{share:.2f}" for share in shares))
        asked_s, beside_s, in_time_s, neither, refusals_ms, management_ms = map(median, zip(*rounds, strict=True))
        report.print_target(f"{name}: share of the goodput", median(shares), GOODPUT)
        report.print_target(f"{name}: refusals p99, ms", refusals_ms, REFUSAL_MS, at_most=True)
        report.print_target(f"{name}: management p95, ms", management_ms, MANAGEMENT_MS, at_most=True)
        rates = [f"{value:.1f}" for value in (capacity_s, asked_s, beside_s, in_time_s)]
        rows.append([name, *rates, *(f"{value:.0f}" for value in (neither, refusals_ms, management_ms))])
    return rows


async def one_round(
    nc: Client, kind: Kind, capacity_s: float, deadline_s: float, options: argparse.Namespace
) -> tuple[float, ...]:
    """Asked, served beside an echo, and served in time, each a second; late or other answers; refusals p99 and
    management p95, in milliseconds."""
    rate = options.times * capacity_s
    async with flooding(nc, Plan(FLOOR, rate - capacity_s, options.seconds, deadline_s, kind.bodies)):
        beside_s = await capacity(nc, kind, options.seconds)
    async with flooding(nc, Plan(kind.subject, rate, options.seconds, deadline_s, kind.bodies)) as flood:
        management_ms = percentile(await managed(nc, deadline_s + options.seconds), 95)
        outcome = await flood
    asked_s = outcome.sent / (deadline_s + options.seconds)
    neither = outcome.sent - len(outcome.in_time) - len(outcome.refused)
    refusals_ms = 1000 * percentile(outcome.refused, 99)
    return asked_s, beside_s, outcome.in_time_s, neither, refusals_ms, management_ms


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.overload")
    parser.add_argument("--times", type=float, default=10, help="of its capacity")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--deadlines", type=float, nargs="+", default=[2, 5, 10])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    setting = {name: f"{getattr(options, name):g}" for name in ("times", "seconds", "rounds")}
    report.print_setting("bench.overload", PACKAGES, **setting)
    settings = {"MLBUS_MODELS": "minilm,smollm2", "MLBUS_GENERATION__KV_GB": "0.5"}
    async with (
        nats_connection() as nc,
        worker(nc, settings),
        running((sys.executable, "-m", "bench.responders", url_of(nc), FLOOR)),
    ):
        rows = [row for kind in kinds() for row in await measure(nc, kind, options)]
    report.print_table(HEADINGS, rows)


if __name__ == "__main__":
    asyncio.run(main())
