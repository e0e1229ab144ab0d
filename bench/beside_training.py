"""A worker's speed while it trains, as a share of its speed alone.

    python -m bench.beside_training [--rounds 5] [--seconds 3]

One worker over NATS. In each round it is measured alone, then while it trains on pairs of the standard library; then
the job is cancelled.
"""

import argparse
import asyncio
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from models.training.run import TrainingOptions
from service.jobs import setup
from subjects import MLClient

from . import finetune_data, report
from .contention import MEASURES
from .processes import nats_connection, worker

PACKAGES = ("torch", "transformers", "nats-py")
TARGET = 0.9
PAIRS = 2000


def pairs() -> list[tuple[str, str]]:
    """Training pairs, more than are needed during the measurement."""
    with tempfile.TemporaryDirectory() as place:
        code = finetune_data.standard_library(Path(place))
        dataset = finetune_data.docstring_pairs(code, PAIRS, TrainingOptions(hard_negatives=0))
    return [(pair.anchor, pair.positive) for pair in dataset.pairs][:PAIRS]


@asynccontextmanager
async def training(client: MLClient, data: Sequence[tuple[str, str]]) -> AsyncIterator[None]:
    """Train while the context is open, from the first steps on."""
    job = (await client.finetune(pairs=list(data), model="minilm", epochs=20)).job
    async for event in client.jobs.watch(job):
        if event.step:
            break
        assert event.state in ("queued", "collecting", "training"), event
    try:
        yield
    finally:
        await client.jobs.cancel(job)
        async for _ in client.jobs.watch(job):
            pass


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.beside_training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement")
    options = parser.parse_args()
    report.print_setting("bench.beside_training", PACKAGES, rounds=f"{options.rounds}, {options.seconds:g} s each")
    data = pairs()
    alone, beside = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    settings = {"MLBUS_MODELS": "minilm,smollm2", "MLBUS_GENERATION__KV_GB": "0.5"}
    async with nats_connection() as nc, worker(nc, settings):
        await setup.create(nc)
        client = MLClient(nc, timeout_s=600)
        for measure in MEASURES.values():
            await measure(client, 1)
        for _ in range(options.rounds):
            for what, measure in MEASURES.items():
                alone[what].append(await measure(client, options.seconds))
            async with training(client, data):
                for what, measure in MEASURES.items():
                    beside[what].append(await measure(client, options.seconds))
    for what in MEASURES:
        report.print_target(f"{what}: share beside a training", report.ratio(beside[what], alone[what]), TARGET)


if __name__ == "__main__":
    asyncio.run(main())
