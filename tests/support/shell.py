"""The `mlbus` command in processes of its own, far from the settings of whoever runs the tests."""

import asyncio
import os
import pty
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from workers import clean_environment

MLBUS = str(Path(sys.executable).with_name("mlbus"))


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Shell:
    """Runs `mlbus` in a folder, against a server. prefix: what every command line begins with."""

    folder: Path
    url: str
    prefix: tuple[str, ...] = ()

    async def start(self, *arguments: str, out: int = PIPE, err: int = PIPE) -> Process:
        """Start it; its standard input is a pipe, and so is its output unless told otherwise."""
        own = {"NATS_URL": self.url, "XDG_CONFIG_HOME": str(self.folder), "TERM": "xterm", "COLUMNS": "200"}
        return await asyncio.create_subprocess_exec(
            *(MLBUS, *self.prefix, *arguments),
            stdin=PIPE,
            stdout=out,
            stderr=err,
            env=clean_environment(**own),
            cwd=self.folder,
            preexec_fn=hear_ctrl_c,
        )

    async def run(self, *arguments: str, text: str = "") -> Ended:
        """Run it to its end; text: its standard input."""
        return await end_of(await self.start(*arguments), text)

    async def run_on_terminal(self, *arguments: str) -> Ended:
        """Run it to its end with a terminal as its standard output."""
        ours, theirs = pty.openpty()
        try:
            process = await self.start(*arguments, out=theirs)
        finally:
            os.close(theirs)
        shown = asyncio.create_task(asyncio.to_thread(_all_of, ours))
        code, _, err = await end_of(process)
        return Ended(code, (await shown).decode().replace("\r\n", "\n"), err)


async def end_of(process: Process, text: str = "") -> Ended:
    """Wait for its end; text: its standard input."""
    out, err = await process.communicate(text.encode())
    assert process.returncode is not None
    assert b"Traceback" not in (err or b"")
    return Ended(process.returncode, (out or b"").decode(), (err or b"").decode())


def hear_ctrl_c() -> None:
    """For a child, as at a prompt: a suite that runs in the background has it ignored, and its children with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _all_of(terminal: int) -> bytes:
    shown = b""
    with suppress(OSError):  # what Linux says of a terminal that nobody has open any more
        while part := os.read(terminal, 65536):
            shown += part
    os.close(terminal)
    return shown
