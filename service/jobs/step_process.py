"""Runs the steps of a run, each in a child process: reads its events, keeps the end of its stderr, ends it."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import structlog
from pydantic import ValidationError

from models.sandbox.confined_process import environment
from models.sandbox.limits import ProcessLimits
from models.training.progress import Event, Failed, read_event

from ..runtime.activity import Activity
from ..runtime.background import background_task
from ..runtime.child_process import lines, start_child

log = structlog.get_logger(__name__)

Step: TypeAlias = Literal["collect", "train", "verify"]
COMMAND = (sys.executable, "-P", "-m", "models.training")
QUIET_S = 0.1
"""A step that gives way goes on after this long without others' work."""
PAUSE_S, RUN_S = 4.0, 1.0
"""It stands still for the first at most, and then runs for the second in any case."""
_NICENESS = 10
_GROUP_NICENESS = 19
_LINE_BYTES = 2**18
_TAIL_LINES = 15
_TAIL_CHARS = 500
_TOO_LONG = "what was given takes too long to read; part it"


class StepFailed(Exception):
    """A step reported why it cannot be done; trying again would not help."""


class StepCrashed(Exception):
    """A step ended without a reason; trying again may help."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Starts steps as child processes.

    threads: compute threads of a step. command: called with the step's name and the run's folder. grace_s: the time
    between SIGTERM and SIGKILL. serving: what steps without limits give way to, see `give_way`.
    """

    threads: int
    command: Sequence[str] = COMMAND
    grace_s: float = 5.0
    serving: Activity = field(default_factory=Activity)

    async def run(
        self, step: Step, folder: Path, on_event: Callable[[Event], None], limits: ProcessLimits | None = None
    ) -> None:
        """Run a step. A cancellation ends its process group.

        on_event: called with each event. limits: for a step that reads a caller's data. Raises StepFailed, StepCrashed.
        """
        process = await self._start(step, folder, limits)
        log.info("step.began", step=step, run=folder.name, pid=process.pid)
        failures: list[str] = []

        def hear(event: Event) -> None:
            if isinstance(event, Failed):
                failures.append(event.reason)
            on_event(event)

        giving_way = background_task(lambda closing: give_way(process, self.serving), "give_way")
        try:
            async with nullcontext() if limits else giving_way, asyncio.timeout(limits.wall_s if limits else None):
                _, tail = await asyncio.gather(_events(process, hear), _tail(process))
                code = await process.wait()
        except TimeoutError:
            raise StepFailed(_TOO_LONG) from None
        finally:
            await self._end(process)
        if code == 0:
            log.info("step.ended", step=step, run=folder.name)
            return
        log.warning("step.failed", step=step, run=folder.name, code=code, reasons=failures, stderr="\n".join(tail))
        if failures and code == 1:
            raise StepFailed(failures[-1])
        if limits and code == -signal.SIGXCPU:
            raise StepFailed(f"{_TOO_LONG}: {limits.cpu_s} s of processor time are the most")
        raise StepCrashed(f"the step {step!r} {_ending(code, tail)}")

    async def _start(self, step: Step, folder: Path, limits: ProcessLimits | None) -> Process:
        # Serving comes first: waiting threads sleep at once. A spin count would override the policy.
        quiet = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": str(self.threads)}
        # oneDNN compiles a kernel for each text length, about a megabyte; by default it keeps the last 1024.
        quiet["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "64"
        command = (*(limits.launcher if limits else ()), *self.command, step, str(folder))
        dies_by = signal.SIGKILL  # SIGTERM does not end a process that is stopped
        environ = environment(**quiet)
        process = await start_child(*command, death_signal=dies_by, env=environ, stdout=PIPE, limit=_LINE_BYTES)
        lower_priority(process.pid)
        return process

    async def _end(self, process: Process) -> None:
        """End the process if it still runs: SIGTERM, then SIGKILL."""
        if process.returncode is not None:
            return
        try:
            _signal(process, signal.SIGTERM)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.grace_s):
                    await _ended(process)
        finally:
            _signal(process, signal.SIGKILL)
            await _ended(process)


async def give_way(process: Process, serving: Activity) -> None:
    """Stop a step while others compute, and let it go on when they have not for a moment; for ever.

    A low priority is not enough: each time that serving waits for an instant, a step that runs takes the core, and with
    it the time of two switches. A step that has stood still for PAUSE_S runs for RUN_S all the same. Its own children,
    such as git, are not stopped: nothing would end them if this process were killed.
    """
    while True:
        await serving.wait_begun()
        _signal_alone(process, signal.SIGSTOP)
        try:
            async with asyncio.timeout(PAUSE_S) as timer:
                await serving.wait_quiet(QUIET_S)
        except TimeoutError:
            pass
        finally:
            _signal_alone(process, signal.SIGCONT)
        if timer.expired():
            await asyncio.sleep(RUN_S)


def lower_priority(pid: int) -> None:
    """Lower the process's priority below serving. With autogroup scheduling niceness counts only within a session, so
    the session's own niceness is raised too."""
    with suppress(ProcessLookupError):
        os.setpriority(os.PRIO_PROCESS, pid, _NICENESS)
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(_GROUP_NICENESS))


async def _events(process: Process, hear: Callable[[Event], None]) -> None:
    async for line in lines(process.stdout):
        try:
            event = read_event(line)
        except ValidationError:
            log.debug("step.said_otherwise", line=line[:200].decode(errors="replace"))
            continue
        hear(event)


async def _tail(process: Process) -> deque[str]:
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    async for line in lines(process.stderr):
        if text := line.decode(errors="replace").strip():
            tail.append(text[-_TAIL_CHARS:])
    return tail


async def _ended(process: Process) -> None:
    """Wait for the end, reading the pipes: a full pipe would block the process."""
    await asyncio.gather(process.communicate(), return_exceptions=True)


def _signal(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _signal_alone(process: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)


def _ending(code: int, tail: Sequence[str]) -> str:
    if code == -signal.SIGKILL:
        killed = "was killed (SIGKILL), by somebody or by the kernel because memory ran out"
        return f"{killed}; if it did, lower batch_size, micro_batch or max_tokens"
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"{how}: {tail[-1]}" if tail else how
