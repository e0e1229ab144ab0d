"""One thread per device: every forward pass runs on it, in turn. Knows nothing of what it runs."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple, Unpack

ArgTs = TypeVarTuple("ArgTs")
ResultT = TypeVar("ResultT")


class DeviceThread:
    """Runs functions one after another, in the order they were handed over."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="device")

    async def run(self, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs) -> ResultT:
        """The function's result, or its exception. A caller that is cancelled does not stop a function that runs."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    def close(self) -> None:
        """Drop what has not begun. What runs finishes, and the process with it, but nobody waits here."""
        self._executor.shutdown(wait=False, cancel_futures=True)
