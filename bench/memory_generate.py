"""Memory of generation: what keys and values take, and whether requests leave anything behind.

    python -m bench.memory_generate [--requests 10000]

A small model with random weights. First an engine in this process: its cache is filled, and the growth of the process
stands beside the bytes that the model's shape gives. Then a worker over NATS with a cache that is soon full: short
requests, one in ten left after its first piece, and the worker's memory in the first and the last quarter.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

from models.catalogue import load_catalogue
from models.generation.engine import Engine
from models.generation.types import EngineLimits, Finished, Request, Sampling
from models.loading.device import configure_threads
from models.loading.loader import LoadOptions, load_generator
from subjects.client import MLClient

from . import report
from .generation_models import Prompt, prompts_of, readable
from .processes import nats_connection, own_bytes, worker
from .random_generators import write_llama

LAYERS, HIDDEN, HEADS = 4, 256, 8
TOKEN_BYTES = 2 * LAYERS * HIDDEN * 4
"""A key and a value of each layer, in fp32: every head has its own."""
RUN_TOKENS, RUNS, WARM_UP_RUNS, PADDING_TOKENS = 1024, 32, 8, 32
KV_BYTES = TOKEN_BYTES * (RUN_TOKENS * RUNS + PADDING_TOKENS)
SOON_FULL_BYTES = 1 << 24
CALLERS, READINGS = 16, 200
WORDS, TOKENS = 12, 6
LEAVING = 10
"""One request in so many is left."""


def main() -> None:
    """Measure both and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory_generate")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1, help="few, for a model so small")
    options = parser.parse_args()
    facts = {"model": f"random, {LAYERS} layers of {HIDDEN}, fp32", "threads": options.threads}
    report.print_setting("bench.memory_generate", ("torch", "transformers"), **facts, requests=options.requests)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_llama(folder, layers=LAYERS, hidden=HIDDEN, heads=HEADS, kv_heads=HEADS, intermediate=512)
        readable(folder)
        print_cache(folder, options.threads)
        print_growth(asyncio.run(readings(folder, options.requests, options.threads)))


def print_cache(folder: Path, threads: int) -> None:
    """Fill a cache, and print its bytes as computed, as the engine says, and as the process grew."""
    configure_threads(threads)
    spec = load_catalogue({"bench": {"kind": "generation", "folder": str(folder)}}).get("bench")
    loaded = load_generator(spec, LoadOptions(device="cpu", dtype="fp32"))
    prompts = [prompt.ids[: RUN_TOKENS - 1] for prompt in prompts_of(folder, RUNS + WARM_UP_RUNS, RUN_TOKENS, (1,))]
    warm_up = Engine(loaded, EngineLimits(kv_bytes=2 * RUN_TOKENS * TOKEN_BYTES))
    fill(warm_up, prompts[RUNS:])  # what computing takes; the small engine lives on, as freeing it would make room
    before = own_bytes(os.getpid())
    engine = Engine(loaded, EngineLimits(kv_bytes=KV_BYTES))
    fill(engine, prompts[:RUNS])
    grown = own_bytes(os.getpid()) - before
    named = (("as computed", KV_BYTES), ("as the engine says", engine.facts.kv_bytes), ("growth of the process", grown))
    report.print_table(["keys and values", "MB"], [[name, f"{size / 1e6:.2f}"] for name, size in named])
    report.print_target("cache, engine's / computed, off by", abs(engine.facts.kv_bytes / KV_BYTES - 1), 0, True)
    report.print_target("cache, measured / computed, off by", abs(grown / KV_BYTES - 1), 0.02, True)
    print(flush=True)
    engine.close()
    warm_up.close()


def fill(engine: Engine, prompts: Sequence[Sequence[int]]) -> None:
    """Compute prompts one after the other; the cache keeps them while there is room."""
    for place, ids in enumerate(prompts):
        engine.add(Request(str(place), ids, max_tokens=1, sampling=Sampling(temperature=0.0)))
        ends = [event for event in iter_events(engine) if isinstance(event, Finished)]
        if [end.reason for end in ends] != ["length"]:
            raise RuntimeError(f"the engine ended a request with {ends}")


def iter_events(engine: Engine) -> Iterator[object]:
    """Step until there is nothing more to do -> what came of it."""
    while not engine.is_idle:
        yield from engine.step()


async def readings(folder: Path, requests: int, threads: int) -> list[int]:
    """The worker's own memory, in bytes, READINGS times in the course of so many requests."""
    settings = {
        "MLBUS_MODELS": "bench",
        "MLBUS_CATALOGUE": f'{{"bench": {{"kind": "generation", "folder": "{folder}", "dtype": "fp32"}}}}',
        "MLBUS_DEVICE": "cpu",
        "MLBUS_THREADS": str(threads),
        "MLBUS_GENERATION__KV_GB": str(SOON_FULL_BYTES / 1e9),
    }
    taken: list[int] = []
    todo = iter(enumerate(prompts_of(folder, requests, WORDS, (2,))))
    async with nats_connection() as nc, worker(nc, settings) as process:
        client = MLClient(nc)

        async def keep_asking() -> None:
            for place, prompt in todo:
                await ask(client, place, prompt)
                if place % (requests // READINGS or 1) == 0:
                    taken.append(own_bytes(process.pid))

        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(keep_asking())
    return taken


async def ask(client: MLClient, place: int, prompt: Prompt) -> None:
    """One request in three is answered at once, the others are streams, some of which are left."""
    if place % 3 == 0:
        await client.generate(prompt.text, max_tokens=TOKENS, temperature=0.0)
        return
    async with aclosing(client.stream(prompt.text, max_tokens=TOKENS, temperature=0.0)) as frames:
        async for _ in frames:
            if place % LEAVING == 1:
                return


def print_growth(taken: list[int]) -> None:
    """The median of the first quarter of the readings, of the last, and the growth between them."""
    quarter = max(1, len(taken) // 4)
    first, last = statistics.median(taken[:quarter]), statistics.median(taken[-quarter:])
    rows = [["first quarter", f"{first / 1e6:.1f}"], ["last quarter", f"{last / 1e6:.1f}"]]
    report.print_table(["the worker's own memory", "MB"], rows)
    report.print_target("growth between the first and the last quarter", last / first - 1, 0.02, at_most=True)


if __name__ == "__main__":
    main()
