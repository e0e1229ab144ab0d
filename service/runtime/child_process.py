"""Child processes that end with this one."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

_LAUNCHER = Path(__file__).with_name("die_with_parent.py")


async def start_child(*command: str, death_signal: signal.Signals = signal.SIGTERM, **options: Any) -> Process:
    """Run a command that ends when this process ends, even by `kill -9`.

    It is in a session of its own, which Ctrl-C does not reach. death_signal: what ends it then. options: of
    create_subprocess_exec; by default stdin is empty and stderr a pipe. Raises OSError.
    """
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(death_signal.value)),
        *command,
        start_new_session=True,
        **{"stdin": DEVNULL, "stderr": PIPE, **options},
    )


async def lines(pipe: asyncio.StreamReader | None) -> AsyncIterator[bytes]:
    """Line by line to the end; lines beyond the pipe's limit are skipped in part."""
    assert pipe is not None
    while True:
        try:
            line = await pipe.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line
