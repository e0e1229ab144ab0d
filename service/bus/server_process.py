"""A nats-server as a child process: started, watched, its output logged, stopped."""

import asyncio
import re
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from logging import makeLogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Self

from ..runtime.child_process import lines, start_child
from .errors import BusError, PortBusy, ServerFailed, WritesRefused

_LOG_BYTES = 10 * 2**20
_LINE_BYTES = 2**20
_TAIL_LINES = 15
_CLIENTS_ON = re.compile(r"Listening for client connections on (\S+)")
_MONITOR_ON = re.compile(r"Starting http monitor on (\S+)")
_BUSY = re.compile(r"listen tcp (\S+): bind: address already in use")
_WRITE_FAILED = re.compile(r"critical write error: (.+)", re.I)


@dataclass(frozen=True, slots=True)
class Addresses:
    """host:port for clients, and for monitoring if that is on."""

    clients: str
    monitor: str | None

    @property
    def ports(self) -> tuple[int, int | None]:
        """For clients and for monitoring, None if that is off."""
        return _port(self.clients), None if self.monitor is None else _port(self.monitor)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


class ServerProcess:
    """One run of nats-server. Call `start`, then `ready`, and always `stop`.

    failed: why it must be restarted after it was ready. It ended by itself, or a write failed, as on a full disk: then
    JetStream stores nothing until a restart.
    """

    def __init__(self, process: asyncio.subprocess.Process, log_path: Path) -> None:
        self._process = process
        self._log_path = log_path
        self._log = RotatingFileHandler(log_path, maxBytes=_LOG_BYTES, backupCount=1, encoding="utf-8")
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._found: dict[str, str] = {}
        self._ready: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
        self.failed: asyncio.Future[BusError] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._watch = asyncio.create_task(self._read_to_the_end(), name="nats-server")

    @classmethod
    async def start(cls, command: Sequence[str], environ: Mapping[str, str], log_path: Path, keep_open: int) -> Self:
        """Run the command, which must outlive the worker's drain. keep_open: a descriptor that it inherits.

        Raises ServerFailed.
        """
        files: dict[str, Any] = {"stdout": asyncio.subprocess.DEVNULL, "pass_fds": (keep_open,)}
        try:
            process = await start_child(*command, env=environ, limit=_LINE_BYTES, **files)
        except OSError as error:
            raise ServerFailed(f"cannot be started: {error}", "(nothing)", log_path) from None
        return cls(process, log_path)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ends_within(self, timeout_s: float) -> bool:
        """Whether it has ended, and its output is written, by then."""
        await asyncio.wait({self._watch}, timeout=timeout_s)
        return self._watch.done()

    async def ready(self, timeout_s: float) -> Addresses:
        """Its addresses, once it serves. Raises PortBusy or ServerFailed if it does not start."""
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._ready)
        except TimeoutError:
            raise self._failure(f"was not ready after {timeout_s:g} s") from None

    async def stop(self, timeout_s: float) -> None:
        """Terminate it, kill it after `timeout_s`, and wait until its output is written."""
        self._stopping = True
        try:
            with suppress(ProcessLookupError):
                self._process.terminate()
            await self.ends_within(timeout_s)
        finally:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._watch
            self._log.close()

    async def _read_to_the_end(self) -> None:
        async for line in lines(self._process.stderr):
            self._note(line.decode(errors="replace").rstrip())
        code = await self._process.wait()
        failure = self._failure(f"ended with exit code {code}")
        if not self._ready.done():
            self._ready.set_exception(failure)
            self._ready.exception()  # marks it as retrieved; there may be no waiter
        else:
            self._fail(failure)

    def _note(self, line: str) -> None:
        self._log.emit(makeLogRecord({"msg": line}))
        self._tail.append(line)
        for name, pattern in (("clients", _CLIENTS_ON), ("monitor", _MONITOR_ON)):
            if found := pattern.search(line):
                self._found[name] = found[1]
        if line.endswith("Server is ready") and not self._ready.done():
            self._ready.set_result(Addresses(self._found["clients"], self._found.get("monitor")))
        if self._ready.done() and (refusal := _WRITE_FAILED.search(line)):
            self._fail(WritesRefused(self._log_path.parent, refusal[1]))

    def _fail(self, failure: BusError) -> None:
        if not self._stopping and not self.failed.done():
            self.failed.set_result(failure)

    def _failure(self, what: str) -> BusError:
        output = "\n".join(self._tail) or "(nothing)"
        if busy := _BUSY.search(output):
            return PortBusy(busy[1], "--nats-monitor-port" if "monitor port" in output else "--nats-port")
        return ServerFailed(what, output, self._log_path)
