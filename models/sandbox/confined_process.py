"""Child processes for what others have made: without our credentials, killed at any time, spoken to in JSON.

Needs the standard library alone.
"""

import json
import os
import socket
import subprocess
import sys
import time
import weakref
from typing import Any

_KEPT = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_", "TZ", "TMPDIR", "XDG_CACHE_HOME", "VIRTUAL_ENV", "PYTHON"),
    *("LD_", "DYLD_", "CUDA", "NVIDIA_", "NCCL_", "TORCH", "PYTORCH_", "TRITON_"),
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "ONEDNN_", "DNNL_"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_", "TRANSFORMERS_", "TOKENIZERS_"),
)
"""Prefixes of the variables that say where things lie and how to compute; no other is passed on."""
_CONFINED = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
_PREFIX_BYTES = 8


def environment(**added: str) -> dict[str, str]:
    """The environment of a child: ours, without credentials and without the way to NATS, and what is added."""
    return {name: value for name, value in os.environ.items() if name.startswith(_KEPT)} | added


class Channel:
    """A socket that carries JSON messages, each behind its length."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def of_child(cls) -> "Channel":
        """In a child: the channel to the process that started it."""
        return cls(socket.socket(fileno=int(sys.argv[1])))

    def send(self, message: Any, timeout_s: float | None = None) -> None:
        """Raises TimeoutError, OSError."""
        content = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
        self._connection.settimeout(timeout_s)
        self._connection.sendall(len(content).to_bytes(_PREFIX_BYTES, "big") + content)

    def receive(self, max_bytes: int, timeout_s: float | None = None) -> Any:
        """The next message. Raises EOFError at the end, TimeoutError, OSError, ValueError for one that is too long or
        no JSON."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        size = int.from_bytes(self._exactly(_PREFIX_BYTES, deadline), "big")
        if size > max_bytes:
            raise ValueError(f"a message of {size} bytes, and {max_bytes} are the most")
        return json.loads(self._exactly(size, deadline).decode("utf-8", "surrogatepass"))

    def _exactly(self, size: int, deadline: float | None) -> bytes:
        parts, missing = [], size
        while missing:
            self._connection.settimeout(None if deadline is None else max(1e-3, deadline - time.monotonic()))
            if not (part := self._connection.recv(min(missing, 1 << 20))):
                raise EOFError
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def wait_closed(self) -> None:
        """Wait until the other side is gone, or sends something unexpected."""
        self._connection.settimeout(None)
        self._connection.recv(1)

    def close(self) -> None:
        self._connection.close()


class ChildProcess:
    """A module of ours in a process without credentials and GPU, which computes with one thread.

    It is killed by `end`, at the latest when this object goes.
    """

    def __init__(self, module: str) -> None:
        """Start it; its one argument is the descriptor of its channel. Raises OSError."""
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(theirs.fileno())],
                env=environment(**_CONFINED),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.end = weakref.finalize(self, _end, self.process, self.channel)


def _end(process: "subprocess.Popen[bytes]", channel: Channel) -> None:
    channel.close()
    process.kill()
    process.wait()
