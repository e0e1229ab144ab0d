"""Restarts the embedded server after it ended or could not write, a few times in a row at most."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import structlog

from .errors import BusError
from .server_process import ServerProcess

log = structlog.get_logger(__name__)

PAUSES_S = (0.0, 0.2, 1.0, 5.0, 10.0)
"""The pause before each restart in a row. After the last one has failed too, the supervisor gives up."""
STEADY_S = 60.0
"""A run of this length resets the count."""
SPACE_CHECK_S = 10.0
"""How often the free space is checked while the server cannot write."""
SPACE_BYTES = 32 * 2**20
"""The free space that a restart needs: a few of JetStream's blocks."""


@dataclass(slots=True)
class Supervisor:
    """process: the present run of the server. data_dir: where it writes."""

    start: Callable[[list[str]], Awaitable[ServerProcess]]
    process: ServerProcess
    data_dir: Path
    start_timeout_s: float
    stop_timeout_s: float
    pauses_s: Sequence[float] = PAUSES_S
    _task: asyncio.Task[BusError] | None = field(default=None, init=False)

    def watch(self, command: list[str], on_died: Callable[[BusError], None] | None) -> None:
        """Keep the server running. on_died: called in the event loop once that has failed."""

        def ended(task: asyncio.Task[BusError]) -> None:
            if not task.cancelled() and on_died is not None:
                on_died(task.result())

        self._task = asyncio.create_task(self._supervise(command), name="nats-server supervisor")
        self._task.add_done_callback(ended)

    async def stop(self) -> None:
        """Stop the server for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self.process.stop(self.stop_timeout_s)

    async def _supervise(self, command: list[str]) -> BusError:
        """Restart the server each time it has ended -> why it does not run any more."""
        now = asyncio.get_running_loop().time
        attempts = iter(self.pauses_s)
        while True:
            began = now()
            failure = await self.process.failed
            log.error("nats_server.failed", reason=str(failure))
            while not await self.process.ends_within(SPACE_CHECK_S):
                if await asyncio.to_thread(_has_space, self.data_dir):
                    break
            if now() - began > STEADY_S:
                attempts = iter(self.pauses_s)
            for pause_s in attempts:
                await asyncio.sleep(pause_s)
                try:
                    await self._start_again(command)
                    break
                except BusError as error:
                    failure = error
                    log.error("nats_server.not_started", reason=str(failure))
            else:
                return failure

    async def _start_again(self, command: list[str]) -> None:
        await self.process.stop(self.stop_timeout_s)
        self.process = await self.start(command)
        await self.process.ready(self.start_timeout_s)
        log.info("nats_server.started_again", pid=self.process.pid)


def _has_space(folder: Path) -> bool:
    """Whether it can be written to, which also covers a quota."""
    try:
        with TemporaryFile(dir=folder) as file:
            file.write(bytes(SPACE_BYTES))
            file.flush()
    except OSError:
        return False
    return True
