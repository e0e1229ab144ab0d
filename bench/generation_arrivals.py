"""Running streams while long prompts keep arriving: how much longer their readers wait for the next piece."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from subjects.client import MLClient

from . import report
from .generation_models import prompts_of
from .generation_nats import generate, stream
from .generation_sample import Sample, percentile

STREAMS, STREAM_WORDS = 4, 64
NEW, NEW_WORDS, NEW_TOKENS = 256, 500, 4
EVERY_S = 1.0
SEED = 7
TARGET = 3


async def measure(client: MLClient, folder: Path, dtype: str, tokens: int) -> dict[str, Sample]:
    """The same streams three times: alone, with a new prompt every second, and with one as soon as one is done."""
    new = iter(prompts_of(folder, NEW, NEW_WORDS, (SEED,)))

    async def ask() -> None:
        await stream(client, next(new), NEW_TOKENS, dtype, time.perf_counter())

    async def every_second() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                group.create_task(ask())
                await asyncio.sleep(EVERY_S)

    async def back_to_back() -> None:
        while True:
            await ask()

    samples = {}
    loads = {"alone": _nothing, "one new prompt a second": every_second, "always one new prompt": back_to_back}
    for turn, (name, load) in enumerate(loads.items()):
        prompts = prompts_of(folder, STREAMS, STREAM_WORDS, (SEED, turn))
        async with _beside(load()):
            samples[name] = await generate(client, prompts, tokens, dtype)
    return samples


def print_gaps(samples: Mapping[str, Sample], model: str, dtype: str) -> None:
    """The table, and the target where prompts arrived."""
    alone = percentile(samples["alone"].gaps_ms(), 50)
    rows, ratios = [], {}
    for name, sample in samples.items():
        p50, p99 = (percentile(sample.gaps_ms(), percent) for percent in (50, 99))
        ratios[name] = p99 / p50
        rows.append([name, f"{sample.rate:.1f}", *(f"{x:.1f}" for x in (p50, p99)), f"{p99 / p50:.2f}"])
        rows[-1].append(f"{p99 / alone:.2f}")
    header = [f"{STREAMS} streams, {dtype}", "tokens/s", "gap p50 ms", "gap p99 ms", "p99/p50", "p99/p50 alone"]
    report.print_table(header, rows)
    for name in list(ratios)[1:]:
        report.print_target(f"{model}, {name} of {NEW_WORDS} tokens: gap p99/p50", ratios[name], TARGET, at_most=True)
    print(flush=True)


@asynccontextmanager
async def _beside(load: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run a load beside the block. Raises what the load raised."""
    task = asyncio.create_task(load)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def _nothing() -> None:
    """No load."""
