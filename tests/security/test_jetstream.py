"""JetStream answers wherever a request says, and asks for no permission: so no client may ask it anything."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats_server import CONF, NatsServer, as_role
from nats_server import secured_server as secured

from service.bus.causes import Denied
from service.bus.client import BusClient
from service.bus.connection import connected, settled
from service.bus.settings import NatsSettings
from service.cli import doctor
from service.jobs import setup
from service.settings import Settings
from subjects import names

SUBJECTS = [
    "$JS.API.>",
    "$JS.API.INFO",
    "$JS.API.DIRECT.GET.OBJ_ml_data.x",
    "$JS.API.STREAM.INFO.OBJ_ml_data",
    "$JS.API.STREAM.MSG.GET.OBJ_ml_data",
    "$O.ml_data.C.x",
    "$O.ml_data.M.x",
    "$KV.ml_jobs.x",
    "$JS.ACK.x",
    "$JS.FC.x",
    "ml.queue.x",
]
WAYS = ["$O.ml_data.C.x", "$JS.API.DIRECT.GET.OBJ_ml_data.$O.ml_data.C.kept", "$JS.API.STREAM.INFO.OBJ_ml_data"]
TARGETS = [
    "$KV.ml_jobs.live.minilm",
    "ml.queue.finetune.evil",
    "ml.models.unload",
    "_INBOX_ml.admin.x",
    "_INBOX_ml.worker.x.1",
    "$O.ml_checkpoints.C.x",
    "$JS.API.STREAM.DELETE.ML_JOBS",
    "$JS.API.STREAM.UPDATE.OBJ_ml_data",
]


def url_of(role: str, server: NatsServer) -> str:
    return server.url if role == "local" else as_role(server, role)


@asynccontextmanager
async def party(role: str, server: NatsServer) -> AsyncIterator[tuple[BusClient, list[Denied]]]:
    refused: list[Denied] = []
    settings = NatsSettings.from_env({"NATS_URL": url_of(role, server), "HOME": "/nowhere"})
    async with connected(settings, on_denied=refused.append) as nc:
        yield nc, refused


@pytest.mark.parametrize("role", ["client", "local"])
async def test_a_client_may_ask_jetstream_nothing(secured_server: NatsServer, role: str) -> None:
    async with party(role, secured_server) as (nc, refused):
        for subject in SUBJECTS:
            await nc.publish(subject, b"x", reply=nc.new_inbox())
        await settled(nc)
    assert refused == [Denied("publish", subject.lower()) for subject in SUBJECTS]


async def sizes(admin: Client) -> list[int]:
    js = admin.jetstream()
    return [(await js.stream_info(each.stream)).state.last_seq for each in setup.STORAGE]


@pytest.mark.parametrize("role", ["client", "local"])
async def test_a_client_has_the_server_publish_nothing(secured_server: NatsServer, admin: Client, role: str) -> None:
    await admin.jetstream().publish("$O.ml_data.C.kept", b"forged", headers={"Status": "503"})
    before = await sizes(admin)
    heard = [await admin.subscribe(target) for target in TARGETS]
    await settled(admin)
    async with party(role, secured_server) as (nc, refused):
        for target in TARGETS:
            for way in WAYS:
                await nc.publish(way, b"", reply=target)
        await nc.publish("$O.ml_data.C.z", b"", headers={"Nats-Rollup": "all"})
        await settled(nc)
    assert len(refused) == len(TARGETS) * len(WAYS) + 1
    assert await sizes(admin) == before
    assert [subscription.pending_msgs for subscription in heard] == [0] * len(TARGETS)


@pytest.mark.parametrize("role", ["client", "local", "admin"])
@pytest.mark.parametrize("granted", ["$JS.API.INFO", "$JS.API.STREAM.INFO.OBJ_ml_data", None])
async def test_a_file_that_still_grants_it_is_told(tmp_path: Path, role: str, granted: str | None) -> None:
    conf = tmp_path / "nats-server.conf"
    more = f'"{names.SCHEMA}"\n  "{granted}"\n' if granted else f'"{names.SCHEMA}"\n'
    conf.write_text(CONF.read_text().replace(f'"{names.SCHEMA}"\n', more, 1))
    server = secured(tmp_path / "nats", conf=conf)
    try:
        url = url_of(role, server.start())
        found = await doctor.check_nats(Settings(nats_url=url, data_dir=tmp_path), 5)
    finally:
        server.stop()
    told = [(each.found, each.advice) for each in found if (each.check, each.status) == ("nats-server.conf", "fail")]
    assert len(told) == (1 if granted and role != "admin" else 0)
    for what, advice in told:
        assert f"may ask {granted}" in what
        assert "docs/security.md" in advice
