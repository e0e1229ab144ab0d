"""Children end with the process that started them."""

import os
import select
import signal
import subprocess
import sys

PARENT = """
import asyncio, os, signal
from service.runtime.child_process import start_child

async def main():
    command = "/bin/sh", "-c", "echo started; exec sleep 600"
    child = await start_child(*command, death_signal=signal.SIGKILL, stdout=asyncio.subprocess.PIPE)
    await child.stdout.readline()
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    print(child.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_stopped_child_too_ends_with_a_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    assert select.select([child], [], [], 20)[0], "it still runs"
    os.close(child)
