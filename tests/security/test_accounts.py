"""Several teams on one server, with the configuration that docs/security.md shows, and the way there."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import nats
import pytest
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from nats.aio.client import Client
from nats.js.errors import ServiceUnavailableError
from nats_server import CONF, REPOSITORY, NatsServer, as_role
from nats_server import secured_server as secured
from readme_blocks import blocks
from workers import running_worker

from service.bus.connection import settled
from service.endpoint import endpoint
from service.jobs import setup
from subjects import MLClient, TokenFrame, names
from subjects.errors import Cancelled, Unavailable

PAGE = REPOSITORY / "docs" / "security.md"
TEAMS = {"MLBUS_RED_PASSWORD": "a-red", "MLBUS_BLUE_PASSWORD": "a-blue"}


@pytest.fixture
def teams(tmp_path: Path) -> Iterator[NatsServer]:
    """Not started yet; its data is where that of `secured_server` is."""
    folder = tmp_path / "conf"
    folder.mkdir()
    shutil.copy(CONF, folder)
    (shown,) = (block.code for block in blocks(PAGE) if block.kind == "conf")
    (folder / "teams.conf").write_text(shown)
    server = secured(tmp_path / "nats", conf=folder / "teams.conf", environ=TEAMS)
    yield server
    server.stop()


def as_team(server: NatsServer, team: str) -> str:
    return f"nats://{team}:a-{team}@{server.address}"


@pytest.fixture
async def red(teams: NatsServer, encoder: FakeEncoder) -> AsyncIterator[MLClient]:
    """A client in one team, of a worker in the account ML."""
    async with (
        running_worker(as_role(teams.start(), "worker"), encoder, FakeEngine()),
        await MLClient.connect(as_team(teams, "red")) as ml,
    ):
        yield ml
        encoder.gate.set()


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


async def test_a_team_is_served_and_another_hears_nothing_of_it(red: MLClient, teams: NatsServer) -> None:
    async with await nats.connect(as_team(teams, "blue")) as blue:
        overheard = await blue.subscribe(">")
        await settled(blue)
        assert (await red.embed("hello")).usage.tokens == 1
        assert len((await red.embed_batch([f"t{n}" for n in range(2000)])).embeddings) == 2000
        assert (await red.similarity("a", "a")).score == pytest.approx(1, abs=1e-6)
        async with aclosing(red.stream("a b", max_tokens=5)) as frames:
            told = [frame async for frame in frames]
        assert "".join(frame.text for frame in told if isinstance(frame, TokenFrame))
        assert len((await red.models.list()).models) > 2
        assert list((await red.schema(names.EMBED)).schemas) == [names.EMBED]
        assert len(await red.discover("INFO")) == 1
        await settled(blue)
        assert overheard.pending_msgs == 0


@pytest.mark.usefixtures("red")
async def test_a_worker_is_told_who_asks(teams: NatsServer) -> None:
    async with await nats.connect(as_role(teams, "admin")) as admin:
        requests = await admin.subscribe(names.EMBED)
        await settled(admin)
        async with await nats.connect(as_team(teams, "red")) as nc:
            forged = {"Nats-Request-Info": '{"acc": "BLUE", "user": "blue"}'}
            await nc.request(names.EMBED, b"hello", timeout=30, headers=forged)
        request = await requests.next_msg(10)
        asker = json.loads(request.headers["Nats-Request-Info"])
        assert (asker["acc"], asker["user"]) == ("RED", "red")
        assert request.reply.startswith("_R_.")


async def test_a_team_may_not_administer(red: MLClient, teams: NatsServer) -> None:
    for asked in (red.models.load("minilm"), red.models.reload("minilm", version="base"), red.jobs.list()):
        with pytest.raises(Unavailable, match="no worker"):
            await asked
    async with await nats.connect(as_team(teams, "red")) as nc:
        with pytest.raises(ServiceUnavailableError):
            await nc.jetstream().account_info()


async def test_a_caller_that_only_its_own_account_hears_is_not_taken_for_gone(
    red: MLClient, teams: NatsServer, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "ASK_S", 0.01)
    async with await nats.connect(as_role(teams, "admin")) as admin:
        asked_of_us = await admin.subscribe(caller := admin.new_inbox())
        await settled(admin)
        encoder.gate.clear()
        held = asyncio.create_task(red.embed("from another account"))
        headers = {names.CALLER: caller}
        beside = asyncio.create_task(admin.request(names.EMBED, b"from the same", timeout=30, headers=headers))
        for _ in range(20):  # by then the other would have been asked too
            await asked_of_us.next_msg(10)
        encoder.gate.set()
        assert (await held).usage.tokens == 3
        assert names.ERROR_CODE not in (await beside).headers


async def test_a_team_cancels_what_it_asked_for(red: MLClient, teams: NatsServer, encoder: FakeEncoder) -> None:
    encoder.gate.clear()
    async with await nats.connect(as_team(teams, "red")) as nc:
        headers = {names.REQUEST_ID: "of-its-own"}
        asked = asyncio.create_task(nc.request(names.EMBED, b"held", timeout=30, headers=headers))
        await asyncio.to_thread(encoder.entered.wait, 30)
        await red.cancel("of-its-own")
        assert (await asked).headers[names.ERROR_CODE] == str(Cancelled.code)


async def test_streams_move_into_a_named_account(admin: Client, secured_server: NatsServer, teams: NatsServer) -> None:
    js = admin.jetstream()
    await js.publish(names.job_queue_subject("one"), b"a job that waits")
    weights = bytes(range(256)) * 1024
    await (await js.object_store(names.CHECKPOINTS_BUCKET)).put("minilm/v1", weights)
    await (await js.key_value(names.JOBS_BUCKET)).put("live.minilm", b"{}")
    held = [(await js.stream_info(storage.stream)).state.messages for storage in setup.STORAGE]
    secured_server.stop()
    jetstream = Path(teams.environ["MLBUS_DATA_DIR"].strip('"')) / "jetstream"
    (jetstream / "$G").rename(jetstream / "ML")
    async with await nats.connect(as_role(teams.start(), "admin")) as nc:
        js = nc.jetstream()
        assert [(await js.stream_info(storage.stream)).state.messages for storage in setup.STORAGE] == held
        assert await setup.outdated(nc) == []
        assert (await (await js.object_store(names.CHECKPOINTS_BUCKET)).get("minilm/v1")).data == weights
        (job,) = await (await js.pull_subscribe_bind(setup.CONSUMER, names.JOBS_STREAM)).fetch(1, timeout=10)
        assert job.data == b"a job that waits"
