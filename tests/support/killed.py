"""Kills what changes files before its first operation, before its second, and so on, each time on fresh files.

Of a file that is written there is also a kill when it holds a few bytes.
"""

import os
import sys
import traceback
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

_KILLED = 77
_OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink")


def kill_everywhere(
    root: Path, prepare: Callable[[Path], None], change: Callable[[Path], Any], check: Callable[[Path, bool], None]
) -> None:
    """For n = 0, 1, ...: prepare a folder, kill a process that changes it at its n-th operation, check what is there;
    then change it, and check that it is done. Ends once that process came to its end. check: folder, whether done.
    """
    for number in count():
        folder = root / str(number)
        folder.mkdir(parents=True)
        prepare(folder)
        killed = _killed(change, folder, number)
        check(folder, not killed)
        change(folder)
        check(folder, True)
        if not killed:
            assert number > 2
            return


def _killed(change: Callable[[Path], Any], folder: Path, number: int) -> bool:
    """Change it in a process of its own, which ends at the n-th operation -> whether it came to that."""
    child = os.fork()
    if not child:
        try:
            _end_at(number)
            change(folder)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, _KILLED)
    return code == _KILLED


def _end_at(number: int) -> None:
    """End this process, which ends soon anyway, at the n-th operation on files: no `finally` of it runs."""
    left = number

    def step(last_act: Callable[[], Any] = lambda: None) -> None:
        nonlocal left
        left -= 1
        if left == -1:
            last_act()
            os._exit(_KILLED)

    def on_audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _OPERATIONS and left >= 0:
            step()
            if event == "open" and arguments[2] & os.O_CREAT:
                step(lambda: Path(arguments[0]).write_bytes(b"half"))

    sync = os.fsync
    mock.patch.object(os, "fsync", lambda descriptor: (step(), sync(descriptor))).start()
    sys.addaudithook(on_audit)
