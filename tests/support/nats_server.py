"""A real nats-server for the tests: a free port, its own JetStream directory, ready when `start` returns.

Plain threads and no event loop, so that any test can use it. Nothing waits by sleeping: a thread reads what the server
writes and sets an event on the line that says it is ready.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
CONF = REPOSITORY / "nats-server.conf"
PASSWORDS = {
    "admin": "an-admin",
    "worker": "a-worker",
    "client": "a-client",
    "gateway": "a-gateway",
    "system": "a-system",
}
_CLIENTS_ON = re.compile(r"Listening for client connections on (\S+)")


class NatsServer:
    """One server process after another on one port. `options` go on the command line, `environ` is added to ours."""

    def __init__(self, data_dir: Path, *options: str, environ: dict[str, str] | None = None) -> None:
        self.lines: list[str] = []
        self._options = options
        self.environ = {**os.environ, "MLBUS_DATA_DIR": f'"{data_dir}"', **(environ or {})}
        self._address = "127.0.0.1:-1"
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._ready = threading.Event()
        self._serves = False

    @property
    def address(self) -> str:
        return self._address

    @property
    def url(self) -> str:
        return f"nats://{self._address}"

    @property
    def port(self) -> int:
        return int(self._address.rpartition(":")[2])

    def start(self) -> NatsServer:
        """Start it, on the port it had before if it had one. Fails with the server's words if it does not come up."""
        self._ready.clear()
        self._serves = False
        command = [str(Path(sys.executable).with_name("nats-server")), "-a", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(
            [*command, *self._options], env=self.environ, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        if not self._ready.wait(30) or not self._serves:
            self.stop()
            raise AssertionError("nats-server did not start:\n" + "\n".join(self.lines[-20:]))
        return self

    def stop(self) -> None:
        """End it in good order and wait until it is gone."""
        self._end(signal.SIGTERM)

    def lame_duck(self) -> None:
        """Have it ask its clients to leave, as before it is taken down."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR2)

    def kill(self) -> None:
        """End it without warning and wait until it is gone."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it and start another on the same port."""
        self.stop()
        self.start()

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.wait(30)
        if self._reader is not None:
            self._reader.join(10)
        self._process = None

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self.lines.append(line.rstrip())
                if found := _CLIENTS_ON.search(line):
                    self._address = found[1]
                if "Server is ready" in line:
                    self._serves = True
                    self._ready.set()
        self._ready.set()


def plain_server(data_dir: Path, *options: str) -> NatsServer:
    """JetStream, no passwords, no limits of ours."""
    return NatsServer(data_dir, "-js", "-sd", str(data_dir), *options)


def secured_server(
    data_dir: Path, *options: str, conf: Path = CONF, environ: dict[str, str] | None = None
) -> NatsServer:
    """Our nats-server.conf, with the passwords in PASSWORDS."""
    passwords = {f"MLBUS_{role.upper()}_PASSWORD": password for role, password in PASSWORDS.items()}
    return NatsServer(data_dir, "-c", str(conf), *options, environ={**passwords, **(environ or {})})


def as_role(server: NatsServer, role: str) -> str:
    """Where to connect as a role of it."""
    return f"nats://{role}:{PASSWORDS[role]}@{server.address}"
