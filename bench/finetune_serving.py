"""The latency of requests during a fine-tuning, and the time until a fleet serves the new version.

    python -m bench.finetune_serving [--pairs 400] [--callers 2] [--workers 3]

Several workers serve all-MiniLM-L6-v2, each with one thread, to callers that embed without a pause. One of the workers
runs a job. Printed are the latency before and during the training, the time from the request to promote its version
until every worker serves it and until the reply, and the number of failed requests.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from nats.aio.client import Client

from models.training.run import TrainingOptions
from service.jobs import setup
from subjects import MLClient, MLError
from subjects.client.discovery import ask_workers
from subjects.jobs import TERMINAL, Job

from . import corpus, finetune_data, report
from .processes import nats_connection, worker

MODEL = "minilm"


@dataclass(slots=True)
class RequestLog:
    """When each request was sent and answered, in seconds, and the failures."""

    requests: list[tuple[float, float]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def p99_ms(self, begin: float, end: float) -> float:
        """The 99th percentile of the requests sent between two times."""
        return float(np.percentile([done - sent for sent, done in self.requests if begin <= sent < end], 99)) * 1000


@dataclass(slots=True)
class Timeline:
    """When the job entered each state and its version was promoted, served everywhere and confirmed, in seconds."""

    states: dict[str, float] = field(default_factory=dict)
    promoted: float = 0.0
    everywhere: float = 0.0
    confirmed: float = 0.0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.finetune_serving")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--callers", type=int, default=2)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--quiet-s", type=float, default=30, help="seconds of load before the job")
    return parser.parse_args()


@asynccontextmanager
async def calling(ml: MLClient, callers: int) -> AsyncIterator[RequestLog]:
    """Send requests while the context is open; leaving waits for the last replies."""
    texts, seen, stop = corpus.functions(256), RequestLog(), asyncio.Event()

    async def call(number: int) -> None:
        while not stop.is_set():
            sent = time.perf_counter()
            try:
                await ml.embed(texts[(number + len(seen.requests)) % len(texts)])
                seen.requests.append((sent, time.perf_counter()))
            except MLError as error:
                seen.failures.append(str(error))

    async with asyncio.TaskGroup() as group:
        for number in range(callers):
            group.create_task(call(number))
        try:
            yield seen
        finally:
            stop.set()


async def run_job(ml: MLClient, nc: Client, pairs: list[tuple[str, str]], workers: int) -> tuple[Job, Timeline]:
    """Run a job and promote its version."""
    timeline, job = Timeline(), None
    begun = await ml.finetune(pairs=pairs, model=MODEL, learning_rate=3e-5, max_tokens=128)
    async for job in ml.jobs.watch(begun.job):
        timeline.states.setdefault(job.state, time.perf_counter())
    assert job is not None
    assert job.state in TERMINAL
    if job.state == "done":
        timeline.promoted = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(_wait_for_all(nc, str(job.version).rpartition("-")[2], workers, timeline))
            await ml.models.promote(job=job.id, timeout_s=300)
            timeline.confirmed = time.perf_counter()
    return job, timeline


async def _wait_for_all(nc: Client, weights: str, workers: int, timeline: Timeline) -> None:
    """Wait until all workers report these weights."""
    while True:
        answers = await ask_workers(nc, "PING", 2.0, stall_s=0.2)
        served = [(answer.body.get("metadata") or {}).get(f"model.{MODEL}", "") for answer in answers]
        if len(served) == workers and all(version.startswith(weights) for version in served):
            timeline.everywhere = time.perf_counter()
            return


async def main() -> None:
    """Run it and print."""
    chosen = parse()
    packages = ("torch", "sentence-transformers", "nats-py")
    report.print_setting("bench.finetune_serving", packages, workers=chosen.workers, callers=chosen.callers)
    with tempfile.TemporaryDirectory() as place:
        code = finetune_data.standard_library(Path(place))
        dataset = finetune_data.docstring_pairs(code, chosen.pairs, TrainingOptions(hard_negatives=0))
    pairs = [(pair.anchor, pair.positive) for pair in dataset.pairs][: chosen.pairs]
    async with nats_connection() as nc, AsyncExitStack() as stack:
        await setup.create(nc)
        for _ in range(chosen.workers):
            await stack.enter_async_context(worker(nc, {"MLBUS_THREADS": "1"}))
        ml = MLClient(nc, timeout_s=60, retries=0)
        async with calling(ml, chosen.callers) as seen:
            began = time.perf_counter()
            await asyncio.sleep(chosen.quiet_s)  # the load runs meanwhile
            job, timeline = await run_job(ml, nc, pairs, chosen.workers)
    _print(seen, began, job, timeline)


def _print(seen: RequestLog, began: float, job: Job, timeline: Timeline) -> None:
    states = timeline.states
    over = states[job.state]
    spans = {
        "before the job": (began, states["queued"]),
        "while it trained": (states["training"], states["verifying"]),
        "from verifying to the end": (states["verifying"], over),
    }
    p99 = {name: seen.p99_ms(*span) for name, span in spans.items()}
    quiet = p99["before the job"]
    rows = [
        (name, f"{end - begin:.0f}", f"{p99[name]:.0f}", f"{p99[name] / quiet:.2f}")
        for name, (begin, end) in spans.items()
    ]
    report.print_table(("", "seconds", "p99 ms", "to before"), rows)
    print(f"job        {job.state}: {job.reason}")
    if job.state == "done":
        print(f"promoted to every worker on the new version: {timeline.everywhere - timeline.promoted:.1f} s")
        print(f"promoted to confirmed (canary check included): {timeline.confirmed - timeline.promoted:.1f} s")
    print(f"requests   {len(seen.requests)} answered")
    report.print_target("failed requests", len(seen.failures), 0, at_most=True)


if __name__ == "__main__":
    asyncio.run(main())
