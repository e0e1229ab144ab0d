"""The embedded NATS server of `mlbus serve --embedded-nats`, which ends with this process."""

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
    """The server's files and ports. Port 0 means any free port; times are in seconds."""

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
    """A running server: its addresses, and the password of each role."""

    url: str
    monitor_url: str | None
    log: Path
    credentials: Path
    passwords: dict[Role, SecretStr]
    supervisor: Supervisor

    @property
    def pid(self) -> int:
        """The present process's id."""
        return self.supervisor.process.pid

    def settings(self, role: Role) -> NatsSettings:
        """Settings for connecting as a role."""
        inbox = credentials_file.inbox_prefix(role)
        return NatsSettings(
            url=self.url, user=role, password=self.passwords[role], inbox_prefix=inbox, name=f"mlbus-{role}"
        )


@asynccontextmanager
async def embedded_server(
    settings: EmbeddedSettings, *, on_died: Callable[[BusError], None] | None = None
) -> AsyncIterator[EmbeddedServer]:
    """A nats-server with our nats-server.conf while the context is open; it ends with this process in any case.

    It is restarted on the same ports if it ends by itself, or if it could not write, once there is space. `on_died` is
    called in the event loop if that fails. In the data directory: `jetstream/`, `nats-server.log` and
    `nats-credentials.env`. Raises ServerMissing, PortBusy, DataDirBusy, BadBusSettings, and ServerFailed with the
    server's output.
    """
    command = _command(settings, settings.port, settings.monitor_port)
    data_dir = settings.data_dir.absolute()
    with _locked(data_dir) as lock:
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
def _locked(data_dir: Path) -> Iterator[int]:
    """Lock the data directory: nats-server itself would let two servers write into one JetStream store.

    The descriptor is passed on to the server, so that the lock lasts as long as either process.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data_dir / "nats-server.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as e:
        reason = f"cannot hold the server's files: {e.strerror}; choose another folder with --data-dir"
        raise BadBusSettings(str(data_dir), reason) from None
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
    """The variables of nats-server.conf. The server parses each value as configuration, so each is quoted."""
    variables = {"MLBUS_DATA_DIR": str(data_dir), **passwords}
    return {**os.environ, **{name: json.dumps(value, ensure_ascii=False) for name, value in variables.items()}}


def _url(addresses: Addresses) -> str:
    host, _, port = addresses.clients.rpartition(":")
    return f"nats://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"
