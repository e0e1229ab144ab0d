"""What a swap of weights costs those who ask meanwhile.

    python -m bench.swap [--swaps 200] [--callers 4]

One worker serves all-MiniLM-L6-v2 while callers embed without a pause. The weights are swapped back and forth between
the model's own and a version with slightly other ones, through ml.models.reload. Every reply names a version; its
vectors are compared with what that version gave for the same text while nothing was swapped. Latency of the requests
that were in flight during a swap is set against that of the same load before and after, and the worker's memory after
the last swap against that after the first few.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from nats.aio.client import Client
from safetensors.numpy import load_file, save_file

from models.catalogue import load_catalogue
from models.weights.hub import locate
from subjects import MLClient, MLError, names

from . import corpus, report
from .processes import nats_connection, own_bytes, worker

MODEL, BASE, OTHER = "minilm", "base", "other"
WARM_UP_SWAPS = 10
BATCH_TEXTS = 8
SAME_COSINE = 0.9999
"""Above this two vectors are of one version; the versions differ by more. bf16 batches differ by less."""
MIB = 2**20

Vectors = npt.NDArray[np.float32]


@dataclass(slots=True)
class Seen:
    """What the callers met. latencies: (sent, answered) in seconds; mixed: replies with a vector of another version."""

    requests: list[tuple[float, float]] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    failures: list[str] = field(default_factory=list)
    mixed: int = 0


@dataclass(slots=True)
class Load:
    """Callers that ask for a batch of texts, over and over. expected: version -> vectors of all texts."""

    ml: MLClient
    texts: Sequence[str]
    expected: dict[str, Vectors]
    stopped: bool = False
    seen: Seen = field(default_factory=Seen)

    @asynccontextmanager
    async def running(self, callers: int) -> AsyncIterator[Seen]:
        """Leaving waits for the last answers."""
        self.stopped, self.seen = False, Seen()
        async with asyncio.TaskGroup() as group:
            for number in range(callers):
                group.create_task(self._call(number))
            try:
                yield self.seen
            finally:
                self.stopped = True

    async def _call(self, number: int) -> None:
        start = number * BATCH_TEXTS
        while not self.stopped:
            rows = [(start + i) % len(self.texts) for i in range(BATCH_TEXTS)]
            start += BATCH_TEXTS
            sent = time.perf_counter()
            try:
                reply = await self.ml.embed_batch([self.texts[row] for row in rows])
            except MLError as error:
                self.seen.failures.append(str(error))
                continue
            self.seen.requests.append((sent, time.perf_counter()))
            self.seen.versions[reply.version] += 1
            cosines = np.einsum("nd,nd->n", np.stack(reply.embeddings), self.expected[reply.version][rows])
            self.seen.mixed += bool(cosines.min() < SAME_COSINE)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.swap")
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--callers", type=int, default=4, help=f"each with a batch of {BATCH_TEXTS} texts under way")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--quiet-s", type=float, default=30, help="seconds of load without a swap, before and after")
    parser.add_argument("--pause-s", type=float, default=0.5, help="seconds between the end of a swap and the next")
    return parser.parse_args()


def write_other(folder: Path) -> None:
    """The model with every weight changed by about two per cent, in the folder of a version."""
    shutil.copytree(locate(load_catalogue().get(MODEL)), folder)
    weights = load_file(folder / "model.safetensors")
    noise = np.random.default_rng(0)
    changed = {
        name: (tensor * noise.normal(1, 0.02, tensor.shape)).astype(tensor.dtype) if tensor.ndim == 2 else tensor
        for name, tensor in weights.items()
    }
    save_file(changed, folder / "model.safetensors", {"format": "pt"})


async def reload(nc: Client, version: str) -> str:
    """Swap -> the version that serves now."""
    body = json.dumps({"model": MODEL, "version": version}).encode()
    reply = json.loads((await nc.request(names.MODELS_RELOAD, body, timeout=60)).data)
    if "error" in reply:
        raise RuntimeError(reply["error"]["message"])
    return str(reply["loaded"]["version"])


@dataclass(frozen=True, slots=True)
class Swap:
    """When it began and ended, in seconds, and what memory the worker had for itself afterwards, in bytes."""

    began: float
    ended: float
    held: int


async def swapped(nc: Client, pid: int, count: int, pause_s: float) -> list[Swap]:
    """Swap so often, there and back."""
    swaps = []
    for number in range(count):
        began = time.perf_counter()
        await reload(nc, (OTHER, BASE)[number % 2])
        ended = time.perf_counter()
        await asyncio.sleep(pause_s)  # the load runs meanwhile
        swaps.append(Swap(began, ended, own_bytes(pid)))
    return swaps


def p99_ms(requests: Sequence[tuple[float, float]]) -> float:
    """The latency that 99 of 100 requests stay below."""
    return float(np.percentile([answered - sent for sent, answered in requests], 99)) * 1000


def during(requests: Sequence[tuple[float, float]], swaps: Sequence[Swap]) -> list[tuple[float, float]]:
    """The requests that were in flight while a swap went on."""
    begins, ends = np.array([swap.began for swap in swaps]), np.array([swap.ended for swap in swaps])
    return [(sent, answered) for sent, answered in requests if np.any((sent < ends) & (answered > begins))]


async def main() -> int:
    """Run it -> exit code."""
    chosen = parse()
    report.print_setting("bench.swap", ["torch", "sentence-transformers", "nats-py"], callers=chosen.callers)
    with tempfile.TemporaryDirectory() as data:
        write_other(Path(data) / "checkpoints" / MODEL / OTHER)
        async with nats_connection() as nc, worker(nc, {"MLBUS_DATA_DIR": data}) as process:
            texts = corpus.functions(chosen.texts)
            ml = MLClient(nc, timeout_s=60, retries=0)
            expected = {}
            for version in (OTHER, BASE):
                await reload(nc, version)
                batch = await ml.embed_batch(texts)
                expected[batch.version] = np.stack(batch.embeddings)
            one, other = expected.values()
            print(
                f"versions   {' and '.join(expected)}, cosine {np.einsum('nd,nd->n', one, other).max():.4f} at most\n"
            )
            load = Load(ml, texts, expected)
            await _measure(load, nc, process.pid, chosen)
    return 0


async def _measure(load: Load, nc: Client, pid: int, chosen: argparse.Namespace) -> None:
    quiet: list[tuple[float, float]] = []
    async with load.running(chosen.callers):
        await swapped(nc, pid, WARM_UP_SWAPS, chosen.pause_s)
    async with load.running(chosen.callers) as seen:
        await asyncio.sleep(chosen.quiet_s)  # the load runs meanwhile
    quiet += seen.requests
    async with load.running(chosen.callers) as swapping:
        swaps = await swapped(nc, pid, chosen.swaps, chosen.pause_s)
    async with load.running(chosen.callers) as seen:
        await asyncio.sleep(chosen.quiet_s)
    quiet += seen.requests
    touched = during(swapping.requests, swaps)
    seconds = float(np.median([swap.ended - swap.began for swap in swaps]))
    held = np.array([swap.held for swap in swaps]) / MIB
    quarter = max(1, len(held) // 4)
    early, late = float(np.median(held[:quarter])), float(np.median(held[-quarter:]))
    rows = [
        [
            "without a swap",
            f"{len(quiet):,}",
            f"{np.median([b - a for a, b in quiet]) * 1000:.1f}",
            f"{p99_ms(quiet):.1f}",
        ],
        [
            "during a swap",
            f"{len(touched):,}",
            f"{np.median([b - a for a, b in touched]) * 1000:.1f}",
            f"{p99_ms(touched):.1f}",
        ],
    ]
    report.print_table([f"batches of {BATCH_TEXTS} texts", "requests", "p50 ms", "p99 ms"], rows)
    print(f"{chosen.swaps} swaps, {seconds:.2f} s each (median); replies by version: {dict(swapping.versions)}")
    print(f"memory of the worker after each swap: median {early:.0f} MiB in the first quarter, {late:.0f} in the last;")
    print(f"{held.min():.0f} to {held.max():.0f} in all (anonymous pages)\n")
    for failure in swapping.failures[:3]:
        print(f"failed: {failure}")
    report.print_target("requests that failed", len(swapping.failures), 0, at_most=True)
    report.print_target("replies with vectors of another version", swapping.mixed, 0, at_most=True)
    report.print_target("p99 during a swap / without", p99_ms(touched) / p99_ms(quiet), 2, at_most=True)
    report.print_target("growth of memory, last quarter over first, %", 100 * (late / early - 1), 2, at_most=True)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
