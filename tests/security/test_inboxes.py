"""Nobody else listens where answers come to, behind nats-server.conf; and no port shows where that is."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from nats_server import CONF, PASSWORDS, NatsServer, secured_server
from workers import running_worker

from service.bus.causes import Denied
from service.bus.client import BusClient
from service.bus.connection import connected, settled
from service.bus.credentials import WORKERS_INBOX
from service.bus.settings import NatsSettings
from service.cli.admin import block_of
from service.endpoint.reply_subject import JETSTREAM_INBOX
from subjects import MLClient, names
from subjects.client.inbox import inbox

USERS = {"alice": "an-alice", "bob": "a-bob"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Our configuration, and two users besides, as `mlbus admin user` writes them."""
    folder: Path = tmp_path_factory.mktemp("nats")
    conf = folder / "nats-server.conf"
    blocks = "\n".join(block_of(CONF.read_text(), "client", name) for name in USERS)
    conf.write_text(CONF.read_text().replace("  users: [\n", f"  users: [\n{blocks}\n", 1))
    passwords = {f"MLBUS_{name.upper()}_PASSWORD": password for name, password in USERS.items()}
    server = secured_server(folder, conf=conf, environ=passwords)
    try:
        yield server.start()
    finally:
        server.stop()


@asynccontextmanager
async def party(server: NatsServer, user: str | None) -> AsyncIterator[tuple[BusClient, list[Denied]]]:
    """A connection of a role, a user or nobody in particular, as the commands make it, and what it was refused."""
    refused: list[Denied] = []
    settings = NatsSettings.from_env({"NATS_URL": server.url, "HOME": "/nowhere"})
    if user is not None:
        settings = NatsSettings.of_user({}, user, {**PASSWORDS, **USERS}[user], server.url)
    async with connected(settings, on_denied=refused.append) as nc:
        yield nc, refused


@pytest.mark.parametrize("eavesdropper", ["alice", "client", None])
async def test_no_user_listens_where_another_is_answered(server: NatsServer, eavesdropper: str | None) -> None:
    others = [user for user in ("alice", "bob", "client", "admin", "worker") if user != eavesdropper]
    subjects = [f"_INBOX_ml.{user}.>" for user in others]
    subjects += [">", "*.>", "_INBOX_ml.>", "_INBOX_ml.*.>", f"{JETSTREAM_INBOX}.>", "$JS.>", "ml.embed", "ml.cancel.*"]
    async with party(server, eavesdropper) as (nc, refused):
        for subject in subjects:
            await nc.subscribe(subject)
        await settled(nc)
        assert [denied.subject for denied in refused] == [subject.lower() for subject in subjects]


async def test_each_is_answered_and_nobody_hears_another(server: NatsServer) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running_worker(f"nats://worker:{PASSWORDS['worker']}@{server.address}"))
        local, _ = await stack.enter_async_context(party(server, None))
        heard = await local.subscribe("_INBOX.>")
        await settled(local)
        for user in ("alice", "bob", "client", "admin"):
            nc, refused = await stack.enter_async_context(party(server, user))
            ml = MLClient(nc, timeout_s=20)
            assert (await ml.embed("hello")).usage.tokens == 1
            assert [frame async for frame in ml.embed_stream(["a", "b"])]
            assert len(await ml.discover()) == 1
            assert refused == []
        await settled(local)
        assert heard.pending_msgs == 0


@pytest.mark.parametrize("role", ["admin", "client"])
def test_a_role_that_is_only_named_has_its_own_inbox(role: str) -> None:
    """Not `_INBOX`, where whoever brings no credentials listens."""
    named = {"NATS_USER": role, "NATS_PASSWORD": "x", "HOME": "/nowhere"}
    assert NatsSettings.from_env(named).inbox_prefix == f"_INBOX_ml.{role}"
    assert NatsSettings.from_env({"NATS_URL": f"nats://{role}:x@h", "HOME": "/nowhere"}).inbox_prefix == (
        f"_INBOX_ml.{role}"
    )
    assert NatsSettings.from_env({**named, "NATS_INBOX_PREFIX": "_INBOX"}).inbox_prefix == "_INBOX"


async def test_what_a_worker_gives_out_is_not_where_jetstream_answers_it(server: NatsServer) -> None:
    async with (
        running_worker(f"nats://worker:{PASSWORDS['worker']}@{server.address}", FakeEncoder(), FakeEngine()),
        party(server, "alice") as (nc, _),
        inbox(nc) as (to, frames),
        inbox(nc) as (caller, probes),
    ):
        given_out = set()
        for headers in ({}, {names.CALLER: caller}):
            asked = b'{"prompt": "a", "max_tokens": 2000}'
            await nc.publish(names.GENERATE, asked, to, {names.STREAM: "true", **headers})
            while (frame := await frames.next_msg(timeout=20)).data:
                given_out.add(frame.reply)
        given_out.add((await probes.next_msg(timeout=20)).reply)
        given_out.discard("")
        assert given_out
        assert {".".join(subject.split(".")[:2]) for subject in given_out} == {WORKERS_INBOX}


async def test_the_server_opens_no_port_but_the_clients(server: NatsServer) -> None:
    async with party(server, "system") as (nc, _):
        told = json.loads((await nc.request("$SYS.REQ.SERVER.PING.VARZ", b"", timeout=5)).data)["data"]
    assert (told.get("http_port", 0), told.get("https_port", 0)) == (0, 0)
    assert told["port"] == server.port
