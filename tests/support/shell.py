"""The `mlbus` command as a person or a script runs it: a real process in a folder, without this user's settings."""

import asyncio
import os
import pty
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from workers import clean_environment, hear_ctrl_c

MLBUS = str(Path(sys.executable).with_name("mlbus"))


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Shell:
    """Runs `mlbus` in a folder, with the server at url if there is one.

    command: what is typed before the arguments of each call. variables: for its environment.
    """

    folder: Path
    url: str | None = None
    command: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)

    async def start(self, *arguments: str, **pipes: int) -> asyncio.subprocess.Process:
        """pipes: stdin, stdout and stderr that are something else, such as a terminal."""
        standard = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
        server = {"NATS_URL": self.url} if self.url else {}
        variables = {**server, "XDG_CONFIG_HOME": str(self.folder), "TERM": "xterm", "COLUMNS": "200"}
        return await asyncio.create_subprocess_exec(
            *(MLBUS, *self.command, *arguments),
            cwd=self.folder,
            env=clean_environment(**{**variables, **self.variables}),
            preexec_fn=hear_ctrl_c,
            **{**standard, **pipes},
        )

    async def run(self, *arguments: str, text: str = "") -> Ended:
        return await self.end(await self.start(*arguments), text)

    async def end(self, process: asyncio.subprocess.Process, text: str = "") -> Ended:
        out, err = await process.communicate(text.encode())
        assert process.returncode is not None
        ended = Ended(process.returncode, (out or b"").decode(), (err or b"").decode())
        assert "Traceback" not in ended.err
        return ended

    async def run_on_terminal(self, *arguments: str) -> Ended:
        """The same, with its standard output on a terminal."""
        ours, theirs = pty.openpty()
        try:
            process = await self.start(*arguments, stdout=theirs)
        finally:
            os.close(theirs)
        shown = asyncio.create_task(asyncio.to_thread(read_terminal, ours))
        ended = await self.end(process)
        return Ended(ended.code, (await shown).replace("\r\n", "\n"), ended.err)


def read_terminal(terminal: int) -> str:
    """All that is written to a terminal until its last writer closes it."""
    shown = b""
    with suppress(OSError):  # from Linux, once the writers are gone
        while part := os.read(terminal, 65536):
            shown += part
    os.close(terminal)
    return shown.decode()
