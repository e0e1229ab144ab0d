"""A NATS server that lives and dies with this process, for whoever has none: `mlbus serve --embedded-nats`.

Owns the data directory's lock and passwords and the way from settings to a command line. The server's rules are
nats-server.conf's, the process is server_process.py's.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from . import credentials as credentials_file
from .announcement import announced
from .credentials import Role
from .errors import BadBusSettings, BusError, DataDirBusy, ServerMissing
from .server_process import Addresses, ServerProcess
from .settings import NatsSettings
from .supervisor import Supervisor

log = structlog.get_logger(__name__)

CONF = Path(__file__).parents[2] / "nats-server.conf"


class EmbeddedSettings(BaseModel):
    """Where the server keeps its files and listens. Port 0 is any free one; times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path = Path("var")
    port: int = Field(default=4222, ge=0, le=65535)
    monitor_port: int | None = Field(default=None, ge=0, le=65535, description="None: no monitoring")
    conf: Path = CONF
    program: Path | None = Field(default=None, description="nats-server; else the one beside Python, else on PATH")
    start_timeout_s: float = Field(default=60.0, gt=0)
    stop_timeout_s: float = Field(default=10.0, gt=0)


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """A server that runs: where, and how each role gets in."""

    url: str
    monitor_url: str | None
    log: Path
    credentials: Path
    passwords: dict[Role, SecretStr]
    supervisor: Supervisor

    @property
    def pid(self) -> int:
        """Of the present run."""
        return self.supervisor.process.pid

    def settings(self, role: Role) -> NatsSettings:
        """How to connect as that role."""
        inbox = credentials_file.inbox_prefix(role)
        return NatsSettings(
            url=self.url, user=role, password=self.passwords[role], inbox_prefix=inbox, name=f"mlbus-{role}"
        )


@asynccontextmanager
async def embedded_server(
    settings: EmbeddedSettings, *, on_died: Callable[[BusError], None] | None = None
) -> AsyncIterator[EmbeddedServer]:
    """A nats-server under our nats-server.conf for as long as the context lasts; it ends with us, however we end.

    One that ends by itself is started again, on the same ports, and so is one that could not write, once there is room.
    `on_died` is called, in the event loop, if that fails.
    JetStream lives in `<data_dir>/jetstream`, the output in `<data_dir>/nats-server.log`, the passwords in
    `<data_dir>/nats-credentials.env`. Raises ServerMissing, PortBusy, DataDirBusy, BadBusSettings, or ServerFailed with
    what the server said.
    """
    command = _command(settings, settings.port, settings.monitor_port)
    data_dir = settings.data_dir.absolute()
    with _held(data_dir) as lock:
        credentials = data_dir / credentials_file.FILE_NAME
        passwords = credentials_file.passwords(credentials)
        environ = _environ(data_dir, credentials_file.variables(credentials))

        async def start(command: list[str]) -> ServerProcess:
            return await ServerProcess.start(command, environ, data_dir / "nats-server.log", lock)

        supervisor = Supervisor(
            start, await start(command), data_dir, settings.start_timeout_s, settings.stop_timeout_s
        )
        try:
            addresses = await supervisor.process.ready(settings.start_timeout_s)
            log.info("nats_server.started", url=_url(addresses), pid=supervisor.process.pid, data_dir=str(data_dir))
            supervisor.watch(_command(settings, *addresses.ports), on_died)
            server = EmbeddedServer(
                url=_url(addresses),
                monitor_url=addresses.monitor and f"http://{addresses.monitor}",
                supervisor=supervisor,
                log=data_dir / "nats-server.log",
                credentials=credentials,
                passwords={role: SecretStr(password) for role, password in passwords.items()},
            )
            with announced(data_dir, server.url):
                yield server
        finally:
            await supervisor.stop()


@contextmanager
def _held(data_dir: Path) -> Iterator[int]:
    """The data directory for this server alone. nats-server itself lets two of them write into one JetStream store.

    The descriptor is passed on to the server, so that the lock lasts as long as either of us.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data_dir / "nats-server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as e:
        raise BadBusSettings(
            str(data_dir), f"cannot hold the server's files: {e.strerror}; choose another folder with --data-dir"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataDirBusy(data_dir) from None
        yield descriptor
    finally:
        os.close(descriptor)


def _command(settings: EmbeddedSettings, port: int, monitor_port: int | None) -> list[str]:
    if not settings.conf.is_file():
        raise BadBusSettings(str(settings.conf), "there is no such file; nats-server.conf belongs to the repository")
    monitor = () if monitor_port is None else ("-m", str(monitor_port or -1))
    listens = ("-p", str(port or -1), *monitor)
    return [find_program(settings.program), "-c", str(settings.conf.absolute()), *listens]


def find_program(given: Path | None) -> str:
    beside = str(Path(sys.executable).parent)
    found = shutil.which(given) if given else shutil.which("nats-server", path=beside) or shutil.which("nats-server")
    if found is None:
        raise ServerMissing(str(given) if given else f"{beside} or on PATH")
    return str(Path(found).absolute())


def _environ(data_dir: Path, passwords: Mapping[str, str]) -> dict[str, str]:
    """What nats-server.conf refers to. The server reads each value as configuration, so each is a quoted string."""
    variables = {"MLBUS_DATA_DIR": str(data_dir), **passwords}
    return {**os.environ, **{name: json.dumps(value, ensure_ascii=False) for name, value in variables.items()}}


def _url(addresses: Addresses) -> str:
    host, _, port = addresses.clients.rpartition(":")
    return f"nats://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"
