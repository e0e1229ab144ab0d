"""What is left of a worker's speed beside processes that spin, with OpenMP's threads waiting our way and its own.

    python -m bench.contention [--rounds 10] [--seconds 3]

Three workers over NATS, of which one computes at a time: ours, and two whose threads always spin as long as libgomp
lets them by default (GOMP_SPINCOUNT), started before and after ours. Those two are alike, so their difference is the
error of the measurement. In each round all are measured alone, and ours beside one process and beside two; the others,
which make hardly any progress there, in the first round only.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from subjects.client import MLClient
from subjects.generate import GenerateDone

from . import corpus, report
from .processes import nats_connection, worker

PACKAGES = ("torch", "transformers", "nats-py")
LIBGOMPS_OWN = "300000"
"""GOMP_SPINCOUNT where nothing is said and there are no more threads than cores."""
OURS = "mlbus"
OWN = ("libgomp's own, started first", "libgomp's own, started last")
SPINNERS = (0, 1, 2)
SETTLE_S = 1.5
"""For so long nothing is measured after others have come or gone: threads spin by what others used a moment ago."""
TARGETS = {1: 0.45, 2: 0.3}
PROMPT = "Write a Python class for a bank account with deposit, withdraw and transfer."
MANY_TOKENS = 500
SPIN = """
import os
parent = os.getppid()
while os.getppid() == parent:  # it does not outlive us
    for _ in range(10**7):
        pass
"""

Rates: TypeAlias = dict[tuple[str, str, int], list[float]]
Measure: TypeAlias = Callable[[MLClient, float], Awaitable[float]]


@dataclass(slots=True)
class Count:
    """What came so far. begun: set once something did."""

    value: int = 0
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, more: int) -> None:
        """More came."""
        self.value += more
        self.begun.set()


async def _rate(count: Count, tasks: Sequence[Awaitable[None]], seconds: float) -> float:
    """How much came in a second, from the first that came on; the tasks are ended."""
    running = [asyncio.ensure_future(task) for task in tasks]
    try:
        await count.begun.wait()
        before, started = count.value, time.perf_counter()
        await asyncio.sleep(seconds)
        return (count.value - before) / (time.perf_counter() - started)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def generation(streams: int) -> Measure:
    """Tokens a second of so many streams, each of a text that does not end meanwhile."""

    async def stream(client: MLClient, count: Count) -> None:
        turns = [{"role": "user", "content": PROMPT}]
        frames = client.stream(messages=turns, max_tokens=MANY_TOKENS, min_tokens=MANY_TOKENS, logprobs=0)
        async with aclosing(frames):
            async for frame in frames:
                if not isinstance(frame, GenerateDone):
                    count.add(len(frame.logprobs or ()))

    async def measure(client: MLClient, seconds: float) -> float:
        count = Count()
        return await _rate(count, [stream(client, count) for _ in range(streams)], seconds)

    return measure


def embedding(callers: int) -> Measure:
    """Texts a second of so many callers, each with one text at a time."""
    texts = corpus.functions(256, seed=1)

    async def call(client: MLClient, count: Count, first: int) -> None:
        for place in range(first, sys.maxsize):
            await client.embed(texts[place % len(texts)])
            count.add(1)

    async def measure(client: MLClient, seconds: float) -> float:
        count = Count()
        return await _rate(count, [call(client, count, 8 * first) for first in range(callers)], seconds)

    return measure


MEASURES: dict[str, Measure] = {
    "generation, 1 stream, tokens/s": generation(1),
    "generation, 8 streams, tokens/s": generation(8),
    "embedding, 1 caller, texts/s": embedding(1),
    "embedding, 32 callers, texts/s": embedding(32),
}


@contextmanager
def spinning(count: int) -> Iterator[None]:
    """So many processes that compute and never wait."""
    spinners = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(count)]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


@asynccontextmanager
async def workers() -> AsyncIterator[dict[str, MLClient]]:
    """A client of each worker, each on a server of its own."""
    async with AsyncExitStack() as stack:
        data = stack.enter_context(tempfile.TemporaryDirectory())
        clients = {}
        for name, spins in ((OWN[0], LIBGOMPS_OWN), (OURS, None), (OWN[1], LIBGOMPS_OWN)):
            nc = await stack.enter_async_context(nats_connection())
            settings = {"MLBUS_MODELS": "minilm,smollm2", "MLBUS_DATA_DIR": data, "MLBUS_GENERATION__KV_GB": "0.5"}
            await stack.enter_async_context(worker(nc, settings | ({"GOMP_SPINCOUNT": spins} if spins else {})))
            clients[name] = MLClient(nc, timeout_s=600)
        yield clients


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.contention")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    return parser.parse_args()


def _share(rates: Rates, what: str, name: str, spinners: int) -> float:
    """Beside so many spinners, of what was measured alone in the same rounds."""
    beside = rates[what, name, spinners]
    return report.ratio(beside, rates[what, name, 0][: len(beside)])


def _print_results(rates: Rates, names: Sequence[str]) -> None:
    for what in MEASURES:
        rows = [
            [
                name,
                *(f"{statistics.median(rates[what, name, spinners]):.1f}" for spinners in SPINNERS),
                *(f"{_share(rates, what, name, spinners):.2f}" for spinners in TARGETS),
            ]
            for name in names
        ]
        report.print_table([what, "alone", "beside 1", "beside 2", "share beside 1", "share beside 2"], rows)
    for what in MEASURES:
        alone, first, last = (statistics.median(rates[what, name, 0]) for name in (OURS, *OWN))
        report.print_target(f"{what}, alone, to the mean of libgomp's own", 2 * alone / (first + last), 0.95)
        print(f"  the two of libgomp's own to each other: {first / last:.2f}")
        for spinners, target in TARGETS.items():
            report.print_target(f"{what}, share beside {spinners}", _share(rates, what, OURS, spinners), target)


async def main() -> None:
    """Measure, print the tables, then the targets."""
    options = _parse()
    report.print_setting("bench.contention", PACKAGES, rounds=f"{options.rounds}, {options.seconds:g} s each")
    rates: Rates = defaultdict(list)
    async with workers() as clients:
        for measure in MEASURES.values():
            for client in clients.values():
                await measure(client, 1)
        for number in range(options.rounds):
            for spinners in SPINNERS:
                measured = clients if not (spinners and number) else {OURS: clients[OURS]}
                with spinning(spinners):
                    await asyncio.sleep(SETTLE_S)
                    for what, measure in MEASURES.items():
                        for name, client in measured.items():
                            rates[what, name, spinners].append(await measure(client, options.seconds))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    _print_results(rates, list(clients))


if __name__ == "__main__":
    asyncio.run(main())
