"""The processes of a measurement: nats-server, the worker and its peers, each started, awaited and ended.

Knows how to start a process and when it answers; knows nothing of what is measured.
"""

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO

import nats
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


class NotReady(Exception):
    """A process did not answer in time."""


def free_port() -> int:
    """A loopback port that nothing listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def url_of(nc: Client) -> str:
    """Where a client is connected."""
    assert nc.connected_url is not None
    return str(nc.connected_url.geturl())


@asynccontextmanager
async def running(
    command: Sequence[str | Path], env: Mapping[str, str] | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process in the repository root; its output is shown only if the block fails."""
    with shown_on_failure() as log:
        process = await asyncio.create_subprocess_exec(
            *map(str, command), cwd=ROOT, env={**os.environ, **(env or {})}, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            await ended(process)


@contextmanager
def shown_on_failure() -> Iterator[IO[bytes]]:
    """A file for what processes say; its end is shown only if the block fails."""
    with tempfile.TemporaryFile() as log:
        try:
            yield log
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
            raise


async def ended(process: asyncio.subprocess.Process, grace_s: float = 20) -> None:
    """Ask the process to stop, and stop it if it does not."""
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(grace_s):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


@asynccontextmanager
async def nats_connection() -> AsyncIterator[Client]:
    """A connection to a nats-server of our own, with JetStream, on a random port."""
    with tempfile.TemporaryDirectory() as store:
        port = free_port()
        command = (BIN / "nats-server", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", store)
        async with running(command) as server:
            await listening(port, server)
            nc = await nats.connect(f"nats://127.0.0.1:{port}")
            try:
                yield nc
            finally:
                await nc.close()


@asynccontextmanager
async def worker(
    nc: Client, env: Mapping[str, str] | None = None, command: Sequence[str | Path] = (BIN / "mlbus", "serve")
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A worker beside `nc` that answers discovery, with minilm and a data directory of its own unless `env` says
    otherwise."""
    with tempfile.TemporaryDirectory() as data:
        settings = {
            "NATS_URL": url_of(nc),
            "MLBUS_DATA_DIR": data,
            "MLBUS_METRICS_PORT": "0",
            "MLBUS_MODELS": "minilm",
            **(env or {}),
        }
        async with running(command, settings) as process:
            await answering(nc, "$SRV.PING.ml", process)
            yield process


async def answering(nc: Client, subject: str, process: asyncio.subprocess.Process, body: bytes = b"") -> None:
    """Wait until `process` serves `subject`. Raises NotReady."""

    async def attempt() -> None:
        await nc.request(subject, body, timeout=5)

    await _until(attempt, (NoRespondersError, NatsTimeoutError), process)


async def listening(port: int, process: asyncio.subprocess.Process) -> None:
    """Wait until `process` accepts connections on the loopback `port`. Raises NotReady."""

    async def attempt() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    await _until(attempt, (OSError,), process)


async def _until(
    attempt: Callable[[], Awaitable[None]],
    not_yet: tuple[type[Exception], ...],
    process: asyncio.subprocess.Process,
    timeout_s: float = 120,
) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.returncode is None:
        try:
            return await attempt()
        except not_yet:
            await asyncio.sleep(0.1)  # Another process: there is no event to wait on.
    raise NotReady(f"process {process.pid} ended with {process.returncode} or took too long to start")


def cpu_seconds(pid: int) -> float:
    """User and system time a process has used (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    """Memory a process holds (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def own_bytes(pid: int) -> int:
    """Memory of a process that is no file's: what it allocated itself (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
