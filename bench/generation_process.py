"""A process that completes prompts, seen from the measurement. What runs in it is generation_child's loop."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from .processes import ROOT, ended, shown_on_failure

_MAX_LINE = 1 << 24


class Child:
    """A running process that answers commands, one at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def ask(self, command: str, **arguments: Any) -> Any:
        """The answer to a command. Raises RuntimeError if the process ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
        return (await self.document())["answer"]

    async def document(self) -> dict[str, Any]:
        """What the process says next; lines that a library prints are passed over. Raises RuntimeError at its end."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            if line.startswith(b"{"):
                document: dict[str, Any] = json.loads(line)
                return document
        raise RuntimeError(f"process {self.pid} of a contender ended")


@asynccontextmanager
async def child(command: Sequence[str | Path]) -> AsyncIterator[Child]:
    """A process that has started and waits for commands; what it complains of is shown only if the block fails."""
    pipe = asyncio.subprocess.PIPE
    with shown_on_failure() as log:
        process = await asyncio.create_subprocess_exec(
            *map(str, command), cwd=ROOT, stdin=pipe, stdout=pipe, stderr=log, limit=_MAX_LINE
        )
        try:
            started = Child(process)
            await started.document()
            yield started
        finally:
            await ended(process)
