"""The connection against real servers: it fails at once and in clear words, then holds."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from certificates import Certificate, certificate
from cuttable import cuttable
from journal import Journal
from nats.errors import FlushTimeoutError, StaleConnectionError
from nats_identities import Operator, key_pair, public, seed
from nats_server import CONF, PASSWORDS, NatsServer, plain_server
from nats_server import secured_server as secured

from service.bus import client, held_messages
from service.bus.causes import Denied
from service.bus.client import BusClient
from service.bus.connection import connected, settled
from service.bus.errors import BadBusSettings, BadCredentials, BusClosed, BusError, TlsFailed, Unreachable
from service.bus.settings import NatsSettings

ADMIN = {"user": "admin", "password": PASSWORDS["admin"]}
WORKER = {"user": "worker", "password": PASSWORDS["worker"], "inbox_prefix": "_INBOX_worker"}


@pytest.fixture
def started() -> Iterator[Callable[[NatsServer], NatsServer]]:
    servers: list[NatsServer] = []

    def start(server: NatsServer) -> NatsServer:
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def dead_url() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"nats://127.0.0.1:{free.getsockname()[1]}"


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that listens and never says a word."""
    await reader.read()
    writer.close()


async def refusal(settings: NatsSettings, within_s: float = 5) -> BusError:
    """How the first connect fails."""
    with pytest.raises(BusError) as raised:
        async with asyncio.timeout(within_s), connected(settings):
            pass
    return raised.value


async def answers(settings: NatsSettings) -> bool:
    """Whether a connection comes about over which a message travels."""
    async with connected(settings) as nc:
        inbox = await nc.subscribe(nc.new_inbox())
        await nc.publish(inbox.subject, b"hello")
        return (await inbox.next_msg(5)).data == b"hello"


class TestFirstConnect:
    async def test_no_server_is_said_at_once_with_what_to_do(self, dead_url: str) -> None:
        address = dead_url.removeprefix("nats://")
        error = await refusal(NatsSettings(url=f"nats://someone:hunter2@{address}"))
        assert isinstance(error, Unreachable)
        assert str(error).startswith(f"no NATS server answers at {dead_url} (")
        assert str(error).endswith("start one, set NATS_URL, or run mlbus serve --embedded-nats")
        assert "hunter2" not in str(error) + repr(error)

    async def test_a_server_that_never_speaks_is_given_up(self) -> None:
        async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
            url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            error = await refusal(NatsSettings(url=url, connect_timeout_s=0.2))
        assert isinstance(error, Unreachable)
        assert error.reason == "no answer within 0.2 s"

    async def test_a_server_that_hangs_up_on_connect_is_given_up(self) -> None:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'INFO {"version":"2.15.0","max_payload":1024}\r\n')
            await reader.readline()
            writer.close()

        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as rude:
            error = await refusal(NatsSettings(url=f"nats://127.0.0.1:{rude.sockets[0].getsockname()[1]}"))
        assert isinstance(error, Unreachable)

    async def test_a_wrong_password_fails_at_once(self, secured_server: NatsServer) -> None:
        before = time.monotonic()
        error = await refusal(NatsSettings(url=secured_server.url, user="worker", password="hunter2"))
        assert time.monotonic() - before < 1
        assert isinstance(error, BadCredentials)
        assert "refused user 'worker' (Authorization Violation)" in str(error)
        assert "hunter2" not in str(error) + repr(error)

    async def test_missing_credentials_fail_at_once(self, tmp_path: Path, started: Callable) -> None:
        server = started(plain_server(tmp_path, "--auth", "hunter2"))
        assert "refused a client without credentials" in str(await refusal(NatsSettings(url=server.url)))

    async def test_one_living_server_is_enough(self, dead_url: str, nats_url: str) -> None:
        for _ in range(4):
            assert await answers(NatsSettings(url=f"{dead_url},{nats_url}"))

    async def test_of_several_reasons_the_one_to_act_on_is_told(
        self, dead_url: str, secured_server: NatsServer
    ) -> None:
        settings = NatsSettings(url=f"{dead_url},{secured_server.url}", user="worker", password="wrong")
        for _ in range(4):
            assert isinstance(await refusal(settings), BadCredentials)

    async def test_giving_up_while_connecting_leaves_nothing_behind(self) -> None:
        before = asyncio.all_tasks()
        async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
            settings = NatsSettings(url=f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1), connected(settings):
                    pass
        assert asyncio.all_tasks() == before


class Answers:
    """Sends answers to a request that comes now."""

    def __init__(self, nc: BusClient, subject: str) -> None:
        self._nc = nc
        self._subject = subject
        self.heard_at = asyncio.get_running_loop().time()

    async def __call__(self, text: bytes, for_s: float = 60) -> None:
        until = asyncio.get_running_loop().time() + for_s
        await self._nc.publish_kept(self._subject, text, until=until, heard_at=self.heard_at)


def quick(url: str) -> NatsSettings:
    """Settings of a client that is soon back."""
    return NatsSettings(url=url, reconnect_wait_s=0.05)


class TestLosses:
    async def test_messages_flow_again_after_a_restart(self, nats_server: NatsServer, journal: Journal) -> None:
        async with connected(NatsSettings(url=nats_server.url, reconnect_wait_s=0.05)) as nc:
            inbox = await nc.subscribe("somewhere", queue="ml")
            nats_server.kill()
            await journal.until("bus.disconnected")
            await nc.publish("somewhere", b"while it was away")
            nats_server.start()
            assert (await journal.until("bus.reconnected"))["url"] == nats_server.url
            assert (await inbox.next_msg(5)).data == b"while it was away"
            nats_server.restart()
            await journal.until("bus.reconnected")
            await nc.publish("somewhere", b"after it")
            assert (await inbox.next_msg(5)).data == b"after it"
        assert [line["event"] for line in journal.lines].count("bus.disconnected") == 2
        assert journal.lines[-1] == {"event": "bus.closed", "url": nats_server.url, "asked": True}

    async def test_answers_that_were_kept_come_in_order_while_they_are_worth_it(
        self, nats_server: NatsServer, journal: Journal
    ) -> None:
        async with cuttable(nats_server) as relay, connected(quick(nats_server.url)) as reader:
            inbox = await reader.subscribe("inbox")
            await settled(reader)
            async with connected(quick(f"nats://{relay.address}")) as nc:
                answer = Answers(nc, "inbox")
                relay.swallow()
                for text in (b"lost 1", b"lost 2"):
                    await answer(text)
                await relay.swallowed(b"lost 2")
                relay.open.clear()
                relay.cut()
                await journal.until("bus.disconnected")
                await answer(b"too late", for_s=0)
                await answer(b"while away")
                relay.open.set()
                await journal.until("bus.reconnected")
                await answer(b"afterwards")
                await nc.held.sent(20)
                await settled(nc)
                assert (nc.kept_bytes, nc.held.size_bytes) == (0, 0)
                came = [(await inbox.next_msg(5)).data for _ in range(4)]
                assert came == [b"lost 1", b"lost 2", b"while away", b"afterwards"]
                relay.cut()
                await journal.until("bus.reconnected")
                await settled(nc)
            await settled(reader)
            assert inbox.pending_msgs == 0

    async def test_answers_wait_for_a_receiver_that_comes_back_later(
        self, nats_server: NatsServer, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each waits for its own receiver, also over one more loss, and those who listen wait for nobody."""
        monkeypatch.setattr(held_messages, "RETURN_S", 60)
        async with connected(quick(nats_server.url)) as nc, connected(quick(nats_server.url)) as reader:
            late, here = Answers(nc, "late"), Answers(nc, "here")
            listening = await reader.subscribe("here")
            nats_server.stop()
            await journal.until("bus.disconnected")
            for text in (b"1", b"2"):
                await late(text)
            await here(b"at once")
            for text in (b"3", b"4"):
                nats_server.start()
                await journal.until("bus.reconnected")
                await late(text)
                assert (await listening.next_msg(5)).data == b"at once"
                assert nc.held.size_bytes
                nats_server.stop()
                await here(b"at once")
            nats_server.start()
            back = await reader.subscribe("late")
            assert [(await back.next_msg(5)).data for _ in range(4)] == [b"1", b"2", b"3", b"4"]
            await nc.held.sent(20)
            await settled(nc)
            assert (nc.held.size_bytes, nc.kept_bytes, nc.held._tasks) == (0, 0, {})

    async def test_a_receiver_that_stays_away_is_not_waited_for(
        self, nats_server: NatsServer, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(held_messages, "RETURN_S", 0.5)
        async with connected(quick(nats_server.url)) as nc:
            answer = Answers(nc, "nobody")
            nats_server.restart()
            await journal.until("bus.reconnected")
            await answer(bytes(1000))
            assert nc.held.size_bytes > 1000
            assert nc.backlog_bytes("nobody", answer.heard_at) > 1000
            asked_since = Answers(nc, "others")
            await asked_since(b"at once")
            assert nc.backlog_bytes("others", asked_since.heard_at) < 1000
            async with asyncio.timeout(10):  # and the server is asked whether it has got it
                while nc.held.size_bytes or nc.kept_bytes:
                    nc.eased.clear()
                    await nc.eased.wait()

    async def test_after_many_bytes_the_server_is_asked_at_once(
        self, nats_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Answers wait while much is kept: until a moment was over, however fast the server took them."""
        monkeypatch.setattr(client, "CONFIRM_S", 1000)
        async with connected(NatsSettings(url=nats_url)) as nc:
            until = asyncio.get_running_loop().time() + 60
            for _ in range(2):
                await nc.publish_kept("inbox", bytes(client.CONFIRM_BYTES // 2), until=until, heard_at=until)
            async with asyncio.timeout(10):
                await nc.eased.wait()
            assert nc.kept_bytes == 0

    async def test_a_ping_waits_its_turn(self, nats_server: NatsServer) -> None:
        """nats-py writes it past what is queued, so that its answer says nothing of that."""
        async with connected(NatsSettings(url=nats_server.url)) as nc:
            inbox = await nc.subscribe("inbox")
            await settled(nc)
            for _ in range(50):
                nc._pending.append(b"PUB inbox 1\r\nx\r\n")
                nc._pending_data_size += 1
                await nc.flush()
                assert (await inbox.next_msg(0.001)).data == b"x"

    async def test_a_link_that_takes_nothing_more_is_given_up(self, nats_server: NatsServer, journal: Journal) -> None:
        """What was written to it kept the connection from closing, and the next one from being made."""
        async with cuttable(nats_server) as relay:
            url = f"nats://{relay.address}"
            async with connected(NatsSettings(url=url, pending_bytes=64 * 2**20)) as nc:
                relay.stall()
                for _ in range(40):
                    await nc.publish("somewhere", bytes(2**20))
                await asyncio.sleep(0)  # all of it is the transport's then
                assert nc.pending_data_size == 0
                await nc._process_op_err(StaleConnectionError())
                await journal.until("bus.disconnected")

    async def test_a_line_that_cannot_be_read_costs_no_more_than_the_connection(
        self, nats_server: NatsServer, journal: Journal
    ) -> None:
        """nats-py stops reading, and notices a minute later."""
        async with cuttable(nats_server) as relay, connected(NatsSettings(url=f"nats://{relay.address}")) as nc:
            relay.say(b"INFO {\r\n")
            await journal.until("bus.reconnected")
            await settled(nc)

    @pytest.mark.parametrize("greeting", [b"INFO\r\n", b"x" * 200_000])
    async def test_another_program_in_the_servers_place_is_outwaited(
        self, nats_server: NatsServer, journal: Journal, greeting: bytes
    ) -> None:
        """nats-py never tried again: it expects no such greeting."""

        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(greeting)
            met.set()
            writer.close()

        met = asyncio.Event()
        async with connected(NatsSettings(url=nats_server.url, reconnect_wait_s=0.05)) as nc:
            nats_server.stop()
            async with await asyncio.start_server(greet, "127.0.0.1", nats_server.port), asyncio.timeout(10):
                await met.wait()
            nats_server.start()
            await journal.until("bus.reconnected")
            await settled(nc)

    async def test_a_flush_that_gave_up_costs_nothing(self, nats_url: str, journal: Journal) -> None:
        async with connected(NatsSettings(url=nats_url)) as nc:
            with pytest.raises(FlushTimeoutError):
                await nc.flush(1e-9)
            await settled(nc)
        assert [line["event"] for line in journal.lines] == ["bus.connected", "bus.closed"]

    async def test_leaving_while_the_server_is_away_is_quick(self, nats_server: NatsServer, journal: Journal) -> None:
        async with asyncio.timeout(3), connected(NatsSettings(url=nats_server.url)) as nc:
            nats_server.stop()
            await journal.until("bus.disconnected")
            await nc.publish("somewhere", b"never sent")

    async def test_credentials_refused_on_a_reconnect_are_said_and_tried_again(
        self, tmp_path: Path, started: Callable, journal: Journal
    ) -> None:
        conf = tmp_path / "nats.conf"
        conf.write_text("authorization { user: worker, password: before }")
        server = started(NatsServer(tmp_path, "-c", str(conf)))
        settings = NatsSettings(url=server.url, user="worker", password="before", reconnect_wait_s=0.05)
        async with connected(settings):
            conf.write_text("authorization { user: worker, password: after }")
            server.restart()
            refused = await journal.until("bus.credentials_refused")
            assert refused == {**refused, "reason": "Authorization Violation", "url": server.url}
            conf.write_text("authorization { user: worker, password: before }")
            server.restart()
            await journal.until("bus.reconnected")

    async def test_an_expelled_client_is_told_that_it_is_over(
        self, tmp_path: Path, started: Callable, journal: Journal
    ) -> None:
        conf = tmp_path / "nats.conf"
        conf.write_text("max_payload: 1KB")
        server = started(NatsServer(tmp_path, "-c", str(conf)))
        over: asyncio.Future[BusClosed] = asyncio.get_running_loop().create_future()
        async with connected(NatsSettings(url=server.url), on_closed=over.set_result) as nc:
            await nc.publish("somewhere", bytes(1024), headers={"not": "counted by nats-py"})
            async with asyncio.timeout(5):
                closed = await over
            assert nc.is_closed
        assert str(closed) == f"the connection to {server.url} was closed for good (maximum payload violation)"
        assert [line["asked"] for line in journal.lines if line["event"] == "bus.closed"] == [False]

    async def test_leaving_does_not_count_as_closed_for_good(self, nats_url: str) -> None:
        async with connected(NatsSettings(url=nats_url), on_closed=lambda _: pytest.fail("called")):
            pass


class TestRefusals:
    async def test_refused_subjects_are_told(self, secured_server: NatsServer, journal: Journal) -> None:
        refused: list[Denied] = []
        settings = NatsSettings(url=secured_server.url, **WORKER)
        async with connected(settings, on_denied=refused.append) as nc:
            await nc.subscribe("not.mine", queue="ml")
            await settled(nc)
            assert refused == [Denied("subscription", "not.mine")]
            await nc.publish("ml.embed", b"x")
            await settled(nc)
            assert refused[1:] == [Denied("publish", "ml.embed")]
        lines = [line for line in journal.lines if line["event"] == "bus.permission_denied"]
        assert [line["subject"] for line in lines] == ["not.mine", "ml.embed"]

    async def test_a_reader_that_is_too_slow_is_named(self, nats_url: str, journal: Journal) -> None:
        async with connected(NatsSettings(url=nats_url)) as nc:
            await nc.subscribe("a.*", pending_msgs_limit=1)
            for _ in range(3):
                await nc.publish("a.b", b"x")
            assert (await journal.until("bus.slow_consumer"))["subject"] == "a.*"


class TestIdentities:
    async def test_user_and_password_in_the_url(self, secured_server: NatsServer) -> None:
        url = secured_server.url.replace("nats://", f"nats://admin:{PASSWORDS['admin']}@")
        assert await answers(NatsSettings(url=url))

    async def test_a_token(self, tmp_path: Path, started: Callable) -> None:
        server = started(plain_server(tmp_path, "--auth", "s3cret"))
        assert await answers(NatsSettings(url=server.url, token="s3cret"))
        assert await answers(NatsSettings.from_env({"NATS_URL": server.url, "NATS_USER": "s3cret"}))
        assert "refused the token" in str(await refusal(NatsSettings(url=server.url, token="other")))

    async def test_an_nkey(self, tmp_path: Path, started: Callable) -> None:
        user, stranger = key_pair(), key_pair()
        conf = tmp_path / "nats.conf"
        conf.write_text(f"authorization {{ users: [{{ nkey: {public(user)} }}] }}")
        server = started(NatsServer(tmp_path, "-c", str(conf)))
        (tmp_path / "user.nk").write_text(f"# a comment\n{seed(user)}\n")
        (tmp_path / "stranger.nk").write_text(seed(stranger))
        assert await answers(NatsSettings(url=server.url, nkey=tmp_path / "user.nk"))
        error = await refusal(NatsSettings(url=server.url, nkey=tmp_path / "stranger.nk"))
        assert isinstance(error, BadCredentials)
        assert "stranger.nk" in error.user

    async def test_credentials_renewed_while_connected_serve_the_reconnect(
        self, tmp_path: Path, started: Callable, journal: Journal
    ) -> None:
        operator, other = Operator(), Operator()
        conf = operator.configure(tmp_path / "nats.conf")
        server = started(NatsServer(tmp_path, "-c", str(conf)))
        creds = operator.credentials(tmp_path / "user.creds")
        async with connected(NatsSettings(url=server.url, creds=creds, reconnect_wait_s=0.05)):
            creds.write_text("half written")
            other.configure(conf)
            server.restart()
            assert "user.creds: holds no " in (await journal.until("bus.credentials_refused"))["reason"]
            other.credentials(creds)
            await journal.until("bus.reconnected")
        assert isinstance(
            await refusal(NatsSettings(url=server.url, creds=operator.credentials(creds))), BadCredentials
        )

    @pytest.mark.parametrize("field", ["creds", "nkey", "ca"])
    @pytest.mark.parametrize("content", [None, b"", b"nothing of the kind", b"\xff\xfe\n", b"SUxx"])
    async def test_a_file_that_holds_something_else_is_named(
        self, tmp_path: Path, field: str, content: bytes | None
    ) -> None:
        path = tmp_path / "file"
        if content is not None:
            path.write_bytes(content)
        error = await refusal(NatsSettings(url="nats://127.0.0.1:1", **{field: path}))
        assert isinstance(error, BadBusSettings)
        assert str(path) in str(error)

    async def test_a_certificate_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        mine = certificate(tmp_path, "mine")
        error = await refusal(NatsSettings(cert=mine.cert, key=tmp_path / "none.key"))
        assert isinstance(error, BadBusSettings)
        assert "none.key" in str(error)


@pytest.fixture
def ca(tmp_path: Path) -> Certificate:
    return certificate(tmp_path, "ca")


class TestTls:
    """Our nats-server.conf with its TLS lines taken in: verify and handshake_first."""

    @pytest.fixture
    def server(self, tmp_path: Path, ca: Certificate, started: Callable) -> NatsServer:
        conf = tmp_path / "with-tls.conf"
        conf.write_text(re.sub(r"^#tls ", "", CONF.read_text(), flags=re.MULTILINE))
        ours = certificate(tmp_path, "server", ca)
        paths = {"CERT": ours.cert, "KEY": ours.key, "CA": ca.cert}
        environ = {f"MLBUS_TLS_{name}": f'"{path}"' for name, path in paths.items()}
        return started(secured(tmp_path, conf=conf, environ=environ))

    @pytest.fixture
    def settings(self, tmp_path: Path, ca: Certificate, server: NatsServer) -> NatsSettings:
        ours = certificate(tmp_path, "client", ca)
        return NatsSettings(
            url=server.url, ca=ca.cert, cert=ours.cert, key=ours.key, tls_first=True, connect_timeout_s=1, **ADMIN
        )

    async def test_both_sides_trust_the_same_ca(self, settings: NatsSettings) -> None:
        assert await answers(settings)

    async def test_a_client_without_certificate_is_refused(self, settings: NatsSettings) -> None:
        error = await refusal(settings.model_copy(update={"cert": None, "key": None}))
        assert isinstance(error, TlsFailed)
        assert "NATS_CERT" in str(error)

    async def test_a_client_that_another_ca_vouches_for_is_refused(
        self, tmp_path: Path, settings: NatsSettings
    ) -> None:
        stranger = certificate(tmp_path, "stranger", certificate(tmp_path, "other-ca"))
        error = await refusal(settings.model_copy(update={"cert": stranger.cert, "key": stranger.key}))
        assert isinstance(error, TlsFailed)

    async def test_a_server_that_we_do_not_trust_is_refused(self, settings: NatsSettings) -> None:
        error = await refusal(settings.model_copy(update={"ca": None}))
        assert isinstance(error, TlsFailed)
        assert "certificate" in error.reason

    async def test_waiting_for_a_greeting_names_the_way_out(self, settings: NatsSettings) -> None:
        error = await refusal(settings.model_copy(update={"tls_first": False}))
        assert "NATS_TLS_FIRST=1" in str(error)

    async def test_reconnects(self, settings: NatsSettings, server: NatsServer, journal: Journal) -> None:
        async with connected(settings.model_copy(update={"reconnect_wait_s": 0.05})):
            server.restart()
            await journal.until("bus.reconnected")


class TestTlsAfterTheGreeting:
    async def test_a_server_certificate_alone(self, tmp_path: Path, ca: Certificate, started: Callable) -> None:
        ours = certificate(tmp_path, "server", ca)
        tls = ("--tls", f"--tlscert={ours.cert}", f"--tlskey={ours.key}")
        server = started(plain_server(tmp_path, *tls))
        assert await answers(NatsSettings(url=server.url, ca=ca.cert))
        error = await refusal(NatsSettings(url=f"{server.url},{server.url}"))
        assert isinstance(error, TlsFailed)
        assert "NATS_CA" in str(error)

    async def test_tls_is_taken_where_it_is_only_offered(
        self, tmp_path: Path, ca: Certificate, started: Callable
    ) -> None:
        ours = certificate(tmp_path, "server", ca)
        conf = tmp_path / "nats.conf"
        conf.write_text(f'allow_non_tls: true\ntls {{ cert_file: "{ours.cert}", key_file: "{ours.key}" }}')
        server = started(NatsServer(tmp_path, "-c", str(conf), "-m", "-1"))
        async with connected(NatsSettings(url=server.url, ca=ca.cert)) as nc:
            assert nc._transport._io_writer.get_extra_info("ssl_object") is not None

    async def test_tls_first_at_a_server_that_greets_fails(self, nats_url: str) -> None:
        assert isinstance(await refusal(NatsSettings(url=nats_url, tls_first=True)), TlsFailed)

    async def test_no_password_leaves_in_the_clear_when_tls_was_asked_for(self) -> None:
        heard = bytearray()

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b'INFO {"version":"2.15.0","auth_required":true,"max_payload":1024}\r\n')
            heard.extend(await reader.read())
            writer.close()

        async with await asyncio.start_server(greet, "127.0.0.1", 0) as snoop:
            url = f"tls://127.0.0.1:{snoop.sockets[0].getsockname()[1]}"
            error = await refusal(NatsSettings(url=url, user="worker", password="hunter2"))
        assert isinstance(error, TlsFailed)
        assert error.reason == "the server offers no TLS"
        assert not heard
