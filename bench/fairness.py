"""What a bulk job costs those who wait for single texts, and what they cost it.

    python -m bench.fairness [--texts 20000] [--rounds 3] [--callers 1] [--think-ms 200]

People ask for one text at a time over NATS and think between two requests; the bulk is streamed `ml.embed.batch`
requests of 1,024 texts, two in flight, from the client's own `embed_all`. In each round people are alone, then the
bulk is, then both run at once. Client, server and worker share the machine's cores.
"""

import argparse
import asyncio
import itertools
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field

import msgpack
import numpy as np
from nats.aio.client import Client

from subjects.client import MLClient
from subjects.embed import EmbedDone

from . import corpus, report
from .load import NatsCaller
from .processes import nats_connection, worker

PACKAGES = ("torch", "sentence-transformers", "transformers", "nats-py")
SINGLES = 512
DIFFERENT = 8192  # texts of the bulk; past these it repeats them


@dataclass(frozen=True, slots=True)
class Waits:
    """What people waited in the rounds of one kind."""

    name: str
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    most_ms: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def add(self, waited_ms: Sequence[float]) -> None:
        """Another round."""
        self.p50_ms.append(float(np.percentile(waited_ms, 50)))
        self.p99_ms.append(float(np.percentile(waited_ms, 99)))
        self.most_ms.append(max(waited_ms))
        self.counts.append(len(waited_ms))

    def row(self) -> list[str]:
        """Its line in the table: the medians of the rounds, and the longest wait of all."""
        middle = [f"{statistics.median(values):.1f}" for values in (self.p50_ms, self.p99_ms)]
        spread = f"{min(self.p99_ms):.1f} to {max(self.p99_ms):.1f}"
        return [self.name, str(sum(self.counts)), *middle, spread, f"{max(self.most_ms):.1f}"]


class People:
    """Closed-loop callers of `ml.embed` with a pause of `think_s`, half of it more or less, after each answer."""

    def __init__(self, callers: Sequence[NatsCaller], think_s: float) -> None:
        self._callers = callers
        self._think_s = think_s
        self._bodies = [msgpack.packb({"text": text}) for text in corpus.functions(SINGLES, seed=1)]
        self._random = random.Random(0)

    @classmethod
    async def open(cls, nc: Client, count: int, think_s: float) -> "People":
        """So many of them on one connection."""
        return cls([await NatsCaller.open(nc, "ml.embed") for _ in range(count)], think_s)

    async def ask(self, requests: int) -> list[float]:
        """What each of so many requests waited, in milliseconds."""
        waited_ms: list[float] = []
        async with asyncio.TaskGroup() as group:
            for caller in self._callers:
                group.create_task(self._ask_on(caller, requests // len(self._callers), waited_ms))
        return waited_ms

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[list[float]]:
        """They ask while the context is open -> what they waited so far, in milliseconds."""
        waited_ms: list[float] = []
        tasks = [asyncio.create_task(self._ask_on(caller, None, waited_ms)) for caller in self._callers]
        try:
            yield waited_ms
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if not isinstance(end, asyncio.CancelledError):
                raise end or AssertionError("a caller left")

    async def _ask_on(self, call: NatsCaller, requests: int | None, waited_ms: list[float]) -> None:
        for _ in itertools.count() if requests is None else range(requests):
            await asyncio.sleep(self._think_s * self._random.uniform(0.5, 1.5))
            sent = time.perf_counter()
            await call(self._random.choice(self._bodies))
            waited_ms.append((time.perf_counter() - sent) * 1000)


async def bulk(client: MLClient, texts: Sequence[str]) -> float:
    """Embed all texts, keeping no vector -> texts per second."""
    started = time.perf_counter()
    async with aclosing(client.embed_all(texts, priority="bulk", timeout_s=600)) as frames:
        async for frame in frames:
            if isinstance(frame, EmbedDone):
                assert frame.count == len(texts)
    return len(texts) / (time.perf_counter() - started)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.fairness")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--texts", type=int, default=20_000, help="of the bulk")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--callers", type=int, default=1, help="people who ask for single texts")
    parser.add_argument("--think-ms", type=float, default=200, help="mean pause of one of them after an answer")
    parser.add_argument("--singles", type=int, default=500, help="requests of all of them a round without the bulk")
    return parser.parse_args()


def print_results(alone: Waits, beside: Waits, rates: dict[str, list[float]]) -> None:
    """The tables, then the targets."""
    print()
    report.print_table(
        ["single texts", "requests", "p50 ms", "p99 ms", "range", "longest ms"], [alone.row(), beside.row()]
    )
    rows = [
        [name, f"{statistics.median(rate):.1f}", f"{min(rate):.1f} to {max(rate):.1f}"] for name, rate in rates.items()
    ]
    report.print_table(["bulk", "texts/s", "range"], rows)
    print(f"p50 of singles, beside bulk to alone: {report.ratio(beside.p50_ms, alone.p50_ms):.2f}")
    with_people, without = rates.values()
    report.print_target("p99 of singles, beside bulk to alone", report.ratio(beside.p99_ms, alone.p99_ms), 3, True)
    report.print_target("throughput of bulk, beside people to alone", report.ratio(with_people, without), 0.85)


async def main() -> None:
    """Measure, print the tables, then the targets."""
    options = parse()
    different = corpus.functions(min(options.texts, DIFFERENT))
    texts = list(itertools.islice(itertools.cycle(different), options.texts))
    people_facts = f"{options.callers}, {options.think_ms:.0f} ms pause (uniform, half more or less)"
    facts = {"people": people_facts, "bulk": f"{len(texts)} texts, digest {corpus.digest(different)}"}
    report.print_setting("bench.fairness", PACKAGES, model="all-MiniLM-L6-v2", rounds=options.rounds, **facts)
    settings = {"MLBUS_THREADS": str(options.threads), "MLBUS_DEVICE": options.device}
    alone, beside = Waits("alone"), Waits("beside bulk")
    rates: dict[str, list[float]] = {"beside people": [], "alone": []}
    async with AsyncExitStack() as stack:
        nc = await stack.enter_async_context(nats_connection())
        await stack.enter_async_context(worker(nc, settings))
        client = MLClient(nc)
        people = await People.open(nc, options.callers, options.think_ms / 1000)
        await people.ask(20)
        await bulk(client, texts[:512])
        for _ in range(options.rounds):
            alone.add(await people.ask(options.singles))
            rates["alone"].append(await bulk(client, texts))
            async with people.asking() as waited_ms:
                rates["beside people"].append(await bulk(client, texts))
            beside.add(waited_ms)
    print_results(alone, beside, rates)


if __name__ == "__main__":
    asyncio.run(main())
