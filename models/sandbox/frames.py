"""Messages between this process and a child: JSON behind its length, over a socket, each within a bound and a time."""

import json
import socket
import time
from typing import Any

_PREFIX = 8


def send(to: socket.socket, message: Any, within_s: float | None = None) -> None:
    """Raises TimeoutError, OSError."""
    content = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    to.settimeout(within_s)
    to.sendall(len(content).to_bytes(_PREFIX, "big") + content)


def receive(source: socket.socket, most_bytes: int, within_s: float | None = None) -> Any:
    """The next message; None at the end. Raises TimeoutError, OSError, ValueError for a longer one or none at all."""
    until = None if within_s is None else time.monotonic() + within_s
    prefix = _exactly(source, _PREFIX, until)
    if not prefix:
        return None
    if (size := int.from_bytes(prefix, "big")) > most_bytes:
        raise ValueError(f"a message of {size} bytes, and {most_bytes} are the most")
    return json.loads(_exactly(source, size, until).decode("utf-8", "surrogatepass"))


def _exactly(source: socket.socket, size: int, until: float | None) -> bytes:
    """So many bytes; none where the other side is gone."""
    parts, missing = [], size
    while missing:
        if until is not None:
            source.settimeout(max(1e-3, until - time.monotonic()))
        part = source.recv(min(missing, 1 << 20))
        if not part:
            return b""
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
