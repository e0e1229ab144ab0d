"""What the bus and the worker add to a model that costs nothing.

    python -m bench.overhead [--rounds 5] [--skip-worker]

Three processes on one nats-server answer the same requests from the same client, in turn: a raw responder (the floor),
the worker with a free encoder, and nats-py's own nats.micro (the peer). Latency is asked by one caller, throughput by
256; client, server and responders share the machine's cores. Memory is the worker's, before and after 100,000 requests.
"""

import argparse
import asyncio
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice

import msgpack
from nats.aio.client import Client

from . import corpus, report
from .load import NatsCaller, closed_loop
from .processes import answering, cpu_seconds, nats_connection, resident_bytes, running, url_of, worker
from .responders import FLOOR, MICRO

CALLERS = 256
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Contender:
    """One process that answers, its callers, and what each round measured of it."""

    name: str
    pid: int
    callers: list[NatsCaller]
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    crowd_p50_ms: list[float] = field(default_factory=list)
    crowd_p99_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    async def measure(self, alone: list[bytes], crowd: list[bytes]) -> None:
        """One round: one caller for latency, then all of them for throughput."""
        single = await closed_loop(self.callers[:1], alone)
        self.p50_ms.append(single.percentile_ms(50))
        self.p99_ms.append(single.percentile_ms(99))
        before = cpu_seconds(self.pid)
        many = await closed_loop(self.callers, crowd)
        self.cpu_ms.append((cpu_seconds(self.pid) - before) * 1000 / len(crowd))
        self.rate.append(many.rate)
        self.crowd_p50_ms.append(many.percentile_ms(50))
        self.crowd_p99_ms.append(many.percentile_ms(99))

    def row(self) -> list[str]:
        """Its line in the table: the medians of the rounds."""
        latencies = (self.p50_ms, self.p99_ms, self.crowd_p50_ms, self.crowd_p99_ms)
        single_p50, single_p99, crowd_p50, crowd_p99 = (f"{statistics.median(values):.2f}" for values in latencies)
        rate = f"{statistics.median(self.rate):,.0f}"
        spread = f"{min(self.rate):,.0f} to {max(self.rate):,.0f}"
        cpu = f"{statistics.median(self.cpu_ms):.3f}"
        return [self.name, single_p50, single_p99, rate, spread, crowd_p50, crowd_p99, cpu]


HEADER = ["contender", "p50 ms", "p99 ms", "requests/s", "range", "p50 ms", "p99 ms", "CPU-ms/request"]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.overhead")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", type=int, default=2_000, help="requests of one caller a round")
    parser.add_argument("--crowd", type=int, default=20_000, help=f"requests of {CALLERS} callers a round")
    parser.add_argument("--warm-up", type=int, default=10_000, help="requests before memory is first read")
    parser.add_argument("--soak", type=int, default=100_000, help="requests between the two readings of memory")
    parser.add_argument("--skip-worker", action="store_true", help="floor and peer only")
    return parser.parse_args()


def bodies(count: int) -> list[bytes]:
    """`count` requests as services send them: MessagePack, one text each."""
    texts = corpus.functions(512)
    return list(islice(cycle([msgpack.packb({"text": text}) for text in texts]), count))


@asynccontextmanager
async def contenders(probe: bytes, skip_worker: bool) -> AsyncIterator[list[Contender]]:
    """The floor, the peer and the worker on one server, all of them answering."""
    async with nats_connection() as nc, AsyncExitStack() as stack:
        started = [
            await _responder(stack, nc, probe, "floor: raw nats-py", FLOOR),
            await _responder(stack, nc, probe, "peer: nats.micro", MICRO),
        ]
        if not skip_worker:
            command = (sys.executable, "-m", "bench.free_worker")
            process = await stack.enter_async_context(worker(nc, command=command))
            started.append(await _contender(nc, "mlbus", process.pid, "ml.embed"))
        yield started


async def _responder(stack: AsyncExitStack, nc: Client, probe: bytes, name: str, subject: str) -> Contender:
    command = (sys.executable, "-m", "bench.responders", url_of(nc), subject)
    process = await stack.enter_async_context(running(command))
    await answering(nc, subject, process, probe)
    return await _contender(nc, name, process.pid, subject)


async def _contender(nc: Client, name: str, pid: int, subject: str) -> Contender:
    return Contender(name, pid, [await NatsCaller.open(nc, subject) for _ in range(CALLERS)])


async def memory(ours: Contender, warm_up: list[bytes], soak: list[bytes]) -> tuple[int, int]:
    """Bytes the worker holds after the warm-up, and after as many requests again as `soak`."""
    await closed_loop(ours.callers, warm_up)
    before = resident_bytes(ours.pid)
    await closed_loop(ours.callers, soak)
    return before, resident_bytes(ours.pid)


def print_targets(floor: Contender, ours: Contender) -> None:
    """The worker's targets beside what it reached."""
    added_ms = statistics.median(a - b for a, b in zip(ours.p50_ms, floor.p50_ms, strict=True))
    report.print_target("p50 added to a raw request and reply, ms", added_ms, 1.5, at_most=True)
    report.print_target(f"requests/s from {CALLERS} callers", statistics.median(ours.rate), 5_000)


async def main() -> None:
    """Measure, print the table, then the targets."""
    options = parse()
    report.print_setting("bench.overhead", ("nats-py", "msgpack"), rounds=options.rounds)
    requests = bodies(max(options.alone, options.crowd, options.warm_up, options.soak))
    async with contenders(requests[0], options.skip_worker) as started:
        for contender in started:
            await closed_loop(contender.callers, requests[:2_000])
        for _ in range(options.rounds):
            for contender in started:
                await contender.measure(requests[: options.alone], requests[: options.crowd])
        print(f"Columns 2 and 3: one caller. Columns 4 to 8: {CALLERS} callers.\n")
        report.print_table(HEADER, [contender.row() for contender in started])
        if options.skip_worker:
            return
        floor, peer, ours = started
        print(f"mlbus to floor {report.ratio(ours.rate, floor.rate):.2f}, ", end="")
        print(f"to peer {report.ratio(ours.rate, peer.rate):.2f} in requests/s\n")
        print_targets(floor, ours)
        before, after = await memory(ours, requests[: options.warm_up], requests[: options.soak])
        print(f"      memory {before / MIB:.1f} MiB, {after / MIB:.1f} MiB after {options.soak:,} more requests")
        report.print_target("growth of memory, percent", (after / before - 1) * 100, 5, at_most=True)


if __name__ == "__main__":
    asyncio.run(main())
