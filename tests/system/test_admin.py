"""`mlbus admin init` and what it makes, asked of the real server."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import RetentionPolicy, StreamConfig
from nats_server import PASSWORDS, NatsServer, plain_server
from workers import clean_environment

from service.bus.connection import connected
from service.bus.settings import NatsSettings
from service.jobs import streams
from service.jobs.store import JobStore, NotSetUp
from subjects import names

MLBUS = str(Path(sys.executable).with_name("mlbus"))
MADE = [
    "made stream ML_JOBS",
    "made key-value bucket ml_jobs",
    "made object bucket ml_checkpoints",
    "made object bucket ml_data",
    "made consumer workers",
]


@pytest.fixture
async def nc(nats_url: str) -> AsyncIterator[Client]:
    async with await nats.connect(nats_url) as client:
        yield client


async def init(server: NatsServer, folder: Path, *arguments: str, role: str | None = None) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `mlbus admin init`."""
    as_role: Mapping[str, str] = {}
    if role:
        as_role = {"NATS_USER": role, "NATS_PASSWORD": PASSWORDS[role], "NATS_INBOX_PREFIX": f"_INBOX_{role}"}
    process = await asyncio.create_subprocess_exec(
        *(MLBUS, "admin", "init", *arguments),
        cwd=folder,
        env=clean_environment(XDG_CONFIG_HOME=str(folder), NATS_URL=server.url, **as_role),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    assert b"Traceback" not in err
    return process.returncode, out.decode(), err.decode()


async def test_everything_is_made_once(nc: Client) -> None:
    assert len(await streams.missing(nc)) == 5
    assert await streams.create(nc) == MADE
    assert await streams.missing(nc) == []
    assert await streams.create(nc) == []


async def test_what_it_makes_is_bounded_and_in_order(nc: Client) -> None:
    await streams.create(nc)
    js = nc.jetstream()
    queue = (await js.stream_info(names.JOBS_STREAM)).config
    assert (queue.retention, queue.subjects, queue.duplicate_window) == ("workqueue", ["ml.queue.>"], 86_400)
    assert queue.max_msgs == 1000
    consumer = (await js.consumer_info(names.JOBS_STREAM, streams.CONSUMER)).config
    assert (consumer.max_ack_pending, consumer.max_deliver, consumer.ack_wait) == (1, -1, 60)
    assert (await js.stream_info("OBJ_ml_data")).config.max_age == 7 * 86_400
    promised = [(await js.stream_info(storage.stream)).config.max_bytes for storage in streams.STORAGE]
    assert min(promised) > 0
    assert sum(promised) < 32 * 2**30
    assert await JobStore(nc).list() == []


async def test_what_differs_is_changed_and_what_is_kept_stays(nc: Client) -> None:
    await streams.create(nc)
    js = nc.jetstream()
    await js.publish(names.JOBS_QUEUE, b"waits")
    config = (await js.stream_info(names.JOBS_STREAM)).config
    await js.update_stream(config.evolve(max_msgs=5, duplicate_window=60))
    consumer = (await js.consumer_info(names.JOBS_STREAM, streams.CONSUMER)).config
    await js.add_consumer(names.JOBS_STREAM, consumer.evolve(ack_wait=5))
    assert await streams.create(nc) == [
        "changed stream ML_JOBS: duplicate_window, max_msgs",
        "changed consumer workers: ack_wait",
    ]
    info = await js.stream_info(names.JOBS_STREAM)
    assert (info.config.max_msgs, info.config.duplicate_window, info.state.messages) == (1000, 86_400, 1)
    assert await streams.create(nc) == []


async def test_one_that_was_made_otherwise_is_named(nc: Client) -> None:
    await nc.jetstream().add_stream(StreamConfig("MINE", subjects=["ml.queue.mine"], retention=RetentionPolicy.LIMITS))
    with pytest.raises(streams.CannotSetUp, match=r"no stream ML_JOBS .*overlap.*remove"):
        await streams.create(nc)


async def test_a_server_without_room_says_how_much_to_give(tmp_path: Path) -> None:
    conf = tmp_path / "small.conf"
    conf.write_text(f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: 2GB }}')
    server = NatsServer(tmp_path, "-c", str(conf))
    try:
        async with await nats.connect(server.start().url) as client:
            with pytest.raises(streams.CannotSetUp, match=r"bucket ml_checkpoints .*max_file_store"):
                await streams.create(client)
    finally:
        server.stop()


async def test_a_server_without_jetstream_says_what_to_do(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    try:
        async with await nats.connect(server.start().url) as client:
            for question in (streams.create, streams.missing):
                with pytest.raises(NotSetUp, match="nats-server -js"):
                    await question(client)
        assert await init(server, tmp_path) == (1, "", f"mlbus: {NotSetUp()}\n")
    finally:
        server.stop()


async def test_the_command_as_admin_and_as_nobody_in_particular(secured_server: NatsServer, tmp_path: Path) -> None:
    code, out, err = await init(secured_server, tmp_path)
    assert (code, out) == (1, "")
    assert "does not let" in err
    assert "set up fine-tuning, which needs the role admin: set NATS_USER=admin" in err
    code, out, err = await init(secured_server, tmp_path, "--json", role="admin")
    assert (code, json.loads(out), err) == (0, {"done": MADE}, "")
    code, out, err = await init(secured_server, tmp_path, role="admin")
    assert (code, out, err) == (0, "everything is there already\n", "")
    worker = NatsSettings(
        url=secured_server.url, user="worker", password=PASSWORDS["worker"], inbox_prefix="_INBOX_worker"
    )
    async with connected(worker) as nc:
        assert await streams.missing(nc) == []


async def test_what_is_made_outlives_the_server(tmp_path: Path) -> None:
    server = plain_server(tmp_path)
    try:
        async with await nats.connect(server.start().url) as client:
            await streams.create(client)
        server.restart()
        async with await nats.connect(server.url) as client:
            assert await streams.create(client) == []
    finally:
        server.stop()
