"""What each role of nats-server.conf may and may not do, asked of the real server."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js.api import ConsumerConfig, StreamConfig
from nats.js.errors import ServiceUnavailableError
from nats_server import CONF, PASSWORDS, NatsServer
from nats_server import secured_server as secured

from service.bus.causes import Denied
from service.bus.connection import connected, settled
from service.bus.credentials import WORKERS_INBOX, inbox_prefix
from service.bus.settings import NatsSettings
from service.endpoint.reply_subject import PREFIXES, ReplySubjects
from service.jobs import setup
from service.jobs.fleet.live import Live, LiveVersions
from service.jobs.objects import Objects
from service.jobs.store import JobStore
from service.jobs.sweep import Sweep
from subjects.client.discovery import ask_workers
from subjects.jobs import Job
from subjects.routes import ROUTES

CLIENTS = {route.subject for route in ROUTES.values() if route.role == "client"}
ADMINISTRATORS = ROUTES.keys() - CLIENTS
ONE_WORKER = {f"{subject}.some_id" for subject in CLIENTS if ROUTES[subject].by_worker}
DISCOVERY = ["$SRV.PING", "$SRV.INFO.ml", "$SRV.STATS.ml.some_id"]
ASKING = [*CLIENTS, *ONE_WORKER, *DISCOVERY, "ml.cancel.some_request"]
EVENTS = ["ml.jobs.some_job.event", "ml.jobs.*.event"]
SERVING = ["ml.>", *ROUTES, "ml.cancel.*", "$SRV.>", "$SRV.PING"]
STREAMS = ["$JS.API.STREAM.CREATE.ML_JOBS", "$JS.API.STREAM.DELETE.ML_JOBS", "$JS.API.STREAM.UPDATE.KV_ml_jobs"]
LIVE_ROUND = ["$SRV.PING.ml", "$SRV.PING.ml.some_id", "$SRV.INFO.ml", "ml.embed.batch", "ml.cancel.some_request"]
UPLOADS = [
    "$O.ml_data.C.x.y",
    "$O.ml_data.M.x",
    "$JS.API.STREAM.INFO.OBJ_ml_data",
    "$JS.API.STREAM.MSG.GET.OBJ_ml_data",
]
STATE = [
    "$KV.ml_jobs.live.minilm",
    "$O.ml_checkpoints.C.x",
    "$O.ml_checkpoints.M.x",
    "$JS.API.STREAM.PURGE.OBJ_ml_data",
    "$JS.API.STREAM.MSG.GET.KV_ml_jobs",
    "$JS.API.STREAM.MSG.GET.OBJ_ml_checkpoints",
    "$JS.API.CONSUMER.MSG.NEXT.ML_JOBS.workers",
    "$JS.ACK.ML_JOBS.workers.1.1.1.1.0",
]
LATER = [
    "$JS.ACK._.account.ML_JOBS.workers.1.1.1.1.0",
    *(f"$JS.FC._.account.{stream}.c.1" for stream in ("KV_ml_jobs", "OBJ_ml_checkpoints")),
]
OTHERS = ["$SYS.REQ.SERVER.PING", "$JS.API.STREAM.LIST", "$KV.others.key", "ml", "somewhere.else"]
ANSWERS = ["_INBOX.x", "_INBOX_ml.client.x.y", "_INBOX_ml.admin.x", "_INBOX_ml.x", "_R_.x", "ml.watch.x"]

MAY_PUBLISH = {
    "admin": [*ASKING, *ADMINISTRATORS, *STREAMS, *UPLOADS, "ml.jobs.some_job.event", "_INBOX.x"],
    "worker": [
        "ml.jobs.some_job.event",
        "ml.queue.finetune.some_job",
        "$JS.API.STREAM.PURGE.ML_JOBS",
        "$JS.API.INFO",
        "$KV.ml_jobs.key",
        *UPLOADS,
        *LIVE_ROUND,
        *ANSWERS,
        *LATER,
    ],
    "client": ASKING,
    "gateway": ASKING,
    "local": ASKING,
}
MAY_NOT_PUBLISH = {
    "admin": [],
    "worker": [
        *(subject for subject in ASKING if subject not in LIVE_ROUND),
        *ADMINISTRATORS,
        *STREAMS,
        *OTHERS,
        "_INBOX_worker.x",
        "ml.watch",
        "$JS.ACK._.account.OTHERS.c.1.1.1.1.0",
        "$JS.API.STREAM.PURGE.OBJ_ml_data",
        "$O.ml_data.C.x",
        "$O.ml_data.C.x.y.z",
    ],
    "client": [
        *ADMINISTRATORS,
        *STATE,
        *UPLOADS,
        *STREAMS,
        *OTHERS,
        *ANSWERS,
        "ml.jobs.some_job.event",
        "ml.queue.finetune.some_job",
        "$JS.API.STREAM.PURGE.ML_JOBS",
        "$JS.API.INFO",
        "ml.other",
    ],
    "local": [
        *ADMINISTRATORS,
        *STATE,
        *UPLOADS,
        *STREAMS,
        *OTHERS,
        *ANSWERS,
        "ml.jobs.some_job.event",
        "ml.queue.finetune.some_job",
        "$JS.API.STREAM.PURGE.ML_JOBS",
        "$JS.API.INFO",
        "ml.other",
    ],
}
MAY_NOT_PUBLISH["gateway"] = MAY_NOT_PUBLISH["client"]
MAY_SUBSCRIBE = {
    "admin": [*SERVING, *EVENTS, ">"],
    "worker": [*SERVING, *EVENTS, "_INBOX_worker.x.*", f"{WORKERS_INBOX}.x"],
    "client": ["ml.watch.x", "_INBOX_ml.client.x.*"],
    "gateway": ["ml.watch.x", "_INBOX_ml.gateway.x.*"],
    "local": ["ml.watch.x", "_INBOX.x.*", "_INBOX.>"],
}
MAY_NOT_SUBSCRIBE = {
    "admin": [],
    "worker": [
        ">",
        "_INBOX.>",
        "_INBOX_ml.client.>",
        "_INBOX_ml.>",
        "_INBOX_ml.x",
        "_R_.>",
        "$JS.API.>",
        "$KV.>",
        "somewhere.else",
    ],
    "client": [
        *SERVING,
        *EVENTS,
        ">",
        "_INBOX.>",
        "_INBOX_worker.>",
        "_INBOX_ml.admin.>",
        "ml.queue.>",
        "$KV.ml_jobs.>",
    ],
    "local": [
        *SERVING,
        *EVENTS,
        ">",
        "_INBOX_ml.client.>",
        "_INBOX_worker.>",
        "_INBOX_ml.admin.>",
        "ml.queue.>",
        "$KV.ml_jobs.>",
    ],
}
MAY_NOT_SUBSCRIBE["gateway"] = [*MAY_NOT_SUBSCRIBE["client"], "_INBOX_ml.client.>"]
ROLES = ["admin", "worker", "client", "gateway", "local"]


class Party:
    """A connection in some role, and what the server refused it."""

    def __init__(self, nc: Client, refused: list[Denied]) -> None:
        self.nc = nc
        self.refused = refused

    async def refusals(self) -> list[Denied]:
        """What was refused since the last call."""
        await settled(self.nc)
        told = self.refused.copy()
        self.refused.clear()
        return told


def settings_of(role: str, server: NatsServer) -> NatsSettings:
    if role == "local":
        return NatsSettings(url=server.url)
    return NatsSettings(url=server.url, user=role, password=PASSWORDS[role], inbox_prefix=inbox_prefix(role))


@asynccontextmanager
async def party(role: str, server: NatsServer) -> AsyncIterator[Party]:
    refused: list[Denied] = []
    async with connected(settings_of(role, server), on_denied=refused.append) as nc:
        yield Party(nc, refused)


@pytest.fixture
async def parties(secured_server: NatsServer) -> AsyncIterator[dict[str, Party]]:
    """One connection in each role."""
    async with AsyncExitStack() as stack:
        yield {role: await stack.enter_async_context(party(role, secured_server)) for role in ROLES}


@pytest.mark.parametrize("role", ROLES)
async def test_publishing(role: str, secured_server: NatsServer) -> None:
    async with party(role, secured_server) as one:
        for subject in MAY_PUBLISH[role]:
            await one.nc.publish(subject, b"x")
            assert await one.refusals() == [], subject
        for subject in MAY_NOT_PUBLISH[role]:
            await one.nc.publish(subject, b"x")
            assert await one.refusals() == [Denied("publish", subject.lower())], subject


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("queue", ["", "ml"])
async def test_subscribing(role: str, queue: str, secured_server: NatsServer) -> None:
    async with party(role, secured_server) as one:
        for subject in MAY_SUBSCRIBE[role]:
            await one.nc.subscribe(subject, queue=queue)
            assert await one.refusals() == [], subject
        for subject in MAY_NOT_SUBSCRIBE[role]:
            await one.nc.subscribe(subject, queue=queue)
            assert await one.refusals() == [Denied("subscription", subject.lower())], subject


@pytest.mark.parametrize("asker", ["client", "local", "admin"])
async def test_a_worker_answers_with_a_whole_stream(parties: dict[str, Party], asker: str) -> None:
    worker, client = parties["worker"], parties[asker]
    requests = await worker.nc.subscribe("ml.generate", queue="ml")
    control = await worker.nc.subscribe(worker.nc.new_inbox())
    await settled(worker.nc)
    inbox = client.nc.new_inbox()
    frames = await client.nc.subscribe(inbox)
    await client.nc.publish("ml.generate", b"def fib(n):", reply=inbox)
    request = await requests.next_msg(5)
    for n in range(50):
        await worker.nc.publish(request.reply, str(n).encode(), reply=control.subject)
    await worker.nc.publish(request.reply, b"")
    assert [int((await frames.next_msg(5)).data) for _ in range(50)] == list(range(50))
    assert (await frames.next_msg(5)).data == b""
    assert await worker.refusals() == []
    assert await client.refusals() == []


async def test_a_worker_learns_that_the_reader_is_gone(parties: dict[str, Party]) -> None:
    worker, client = parties["worker"], parties["client"]
    requests = await worker.nc.subscribe("ml.generate", queue="ml")
    control = await worker.nc.subscribe(worker.nc.new_inbox())
    await settled(worker.nc)
    await client.nc.publish("ml.generate", b"def fib(n):", reply=client.nc.new_inbox())
    request = await requests.next_msg(5)
    await worker.nc.publish(request.reply, b"a frame", reply=control.subject)
    gone = await control.next_msg(5)
    assert gone.headers["Status"] == "503"


def granted(permissions: str) -> list[str]:
    """The subjects in a list of nats-server.conf."""
    found = re.search(rf"^{permissions}: \[(.*?)^\]", CONF.read_text(), re.DOTALL | re.MULTILINE)
    assert found
    return re.findall(r'"([^"]+)"', re.sub(r"#.*", "", found[1]))


def test_clients_are_granted_what_the_table_says() -> None:
    asked = CLIENTS | {f"{subject}.*" for subject in CLIENTS if ROUTES[subject].by_worker}
    assert set(granted("CLIENT_PUBLISH")) == {*asked, "ml.cancel.*", "$SRV.>"}


def test_a_worker_answers_below_just_those_prefixes_that_it_may_publish_to() -> None:
    subjects = [subject for subject in granted("WORKER_PUBLISH") if re.match(r"_|ml\.watch", subject)]
    assert tuple(subject.removesuffix(".>") for subject in subjects) == PREFIXES


@pytest.mark.parametrize("asker", ["client", "local"])
async def test_discovery(parties: dict[str, Party], asker: str) -> None:
    worker = parties["worker"]
    pings = await worker.nc.subscribe("$SRV.PING")
    await settled(worker.nc)
    asked = asyncio.create_task(parties[asker].nc.request("$SRV.PING", b"", timeout=5))
    await worker.nc.publish((await pings.next_msg(5)).reply, b"here")
    assert (await asked).data == b"here"


async def test_cancelling_reaches_every_worker(parties: dict[str, Party]) -> None:
    cancelled = await parties["worker"].nc.subscribe("ml.cancel.*")
    await settled(parties["worker"].nc)
    await parties["client"].nc.publish("ml.cancel.r1")
    assert (await cancelled.next_msg(5)).subject == "ml.cancel.r1"


@pytest.fixture
async def storage(parties: dict[str, Party]) -> None:
    """What the administrator makes before workers come."""
    await setup.create(parties["admin"].nc)


@pytest.mark.usefixtures("storage")
class TestJetStream:
    async def test_a_worker_takes_jobs_from_the_queue(self, parties: dict[str, Party]) -> None:
        worker = parties["worker"]
        js = worker.nc.jetstream()
        first = await js.publish("ml.queue.finetune.j1", b"a job", headers={"Nats-Msg-Id": "j1"})
        again = await js.publish("ml.queue.finetune.j1", b"a job", headers={"Nats-Msg-Id": "j1"})
        assert (first.stream, first.duplicate, again.duplicate) == ("ML_JOBS", None, True)
        jobs = await js.pull_subscribe_bind("workers", "ML_JOBS")
        (job,) = await jobs.fetch(1, timeout=5)
        await job.in_progress()
        await job.ack_sync(timeout=5)
        assert (await js.consumer_info("ML_JOBS", "workers")).num_ack_pending == 0
        assert (await js.stream_info("ML_JOBS")).state.messages == 0
        await js.publish("ml.queue.finetune.j2", b"another")
        await js.purge_stream("ML_JOBS", subject="ml.queue.finetune.j2")
        assert (await js.stream_info("ML_JOBS")).state.messages == 0
        await js.account_info()
        assert await worker.refusals() == []

    async def test_a_worker_lists_jobs_and_sweeps(self, parties: dict[str, Party]) -> None:
        worker, at = parties["worker"], datetime.now(UTC)
        store = JobStore(worker.nc)
        await store.create(Job(id="j1", model="minilm", source="code", state="queued", created_at=at, updated_at=at))
        await Sweep(worker.nc, store).once()
        assert [(job.id, job.state) for job in await store.list()] == [("j1", "queued")]
        assert await LiveVersions(worker.nc).all() == {}
        assert await worker.refusals() == []

    async def test_a_worker_keeps_the_state_of_jobs(self, parties: dict[str, Party]) -> None:
        worker = parties["worker"]
        states = await worker.nc.jetstream().key_value("ml_jobs")
        revision = await states.create("j1", b"queued")
        watch = await states.watchall()
        assert (await watch.updates(timeout=5)).value == b"queued"
        assert await watch.updates(timeout=5) is None
        await states.update("j1", b"running", last=revision)
        assert (await watch.updates(timeout=5)).value == b"running"
        await watch.stop()
        assert (await states.get("j1")).value == b"running"
        assert await states.keys() == ["j1"]
        assert [entry.value for entry in await states.history("j1")] == [b"running"]
        assert (await states.status()).values == 1
        await states.delete("j1")
        await states.purge("j1")
        assert await worker.refusals() == []

    async def test_a_worker_keeps_checkpoints(self, parties: dict[str, Party]) -> None:
        worker = parties["worker"]
        checkpoints = await worker.nc.jetstream().object_store("ml_checkpoints")
        weights = bytes(range(256)) * 2048
        await checkpoints.put("minilm/v1", weights)
        await checkpoints.put("minilm/v2", weights)
        assert (await checkpoints.get("minilm/v1")).data == weights
        assert {info.name for info in await checkpoints.list()} == {"minilm/v1", "minilm/v2"}
        await checkpoints.delete("minilm/v1")
        assert (await checkpoints.get_info("minilm/v2")).size == len(weights)
        assert (await checkpoints.status()).bucket == "ml_checkpoints"
        assert await worker.refusals() == []

    async def test_the_administrator_puts_training_data_that_a_worker_reads(self, parties: dict[str, Party]) -> None:
        admin, worker = parties["admin"], parties["worker"]
        pairs = bytes(range(256)) * 2048
        await (await admin.nc.jetstream().object_store("ml_data")).put("pairs.jsonl", pairs)
        assert await admin.refusals() == []
        copied = io.BytesIO()
        await Objects(worker.nc, "ml_data").copy("pairs.jsonl", copied)
        assert copied.getvalue() == pairs
        assert await worker.refusals() == []

    async def test_a_worker_follows_the_live_versions(self, parties: dict[str, Party]) -> None:
        worker = parties["worker"]
        live = LiveVersions(worker.nc)
        named = Live(version="v1", at=datetime.now(UTC))
        await live.change("minilm", lambda before: named)
        assert await live.all() == {"minilm": named}
        async with aclosing(live.watch()) as changes:
            assert await anext(changes) == ("minilm", named)
        assert await worker.refusals() == []

    async def test_a_worker_asks_over_the_bus_who_serves(self, parties: dict[str, Party]) -> None:
        worker = parties["worker"]
        pings = await worker.nc.subscribe("$SRV.PING.ml")
        asked = asyncio.create_task(ask_workers(worker.nc, "PING", 5, 0.1, WORKERS_INBOX))
        await worker.nc.publish((await pings.next_msg(5)).reply, b"{}")
        assert [answer.body for answer in await asked] == [{}]
        assert await worker.refusals() == []

    @pytest.mark.parametrize("role", ["worker", "client", "local"])
    async def test_nobody_else_makes_or_removes_storage(self, parties: dict[str, Party], role: str) -> None:
        js = parties[role].nc.jetstream(timeout=0.1)
        attempts: list[Any] = [
            js.add_stream(StreamConfig("MINE", subjects=["mine"])),
            js.delete_stream("ML_JOBS"),
            js.delete_consumer("ML_JOBS", "workers"),
            js.add_consumer("ML_JOBS", ConsumerConfig(durable_name="mine")),
            js.create_key_value(bucket="mine"),
            js.delete_key_value("ml_jobs"),
            js.delete_object_store("ml_checkpoints"),
        ]
        for attempt in attempts:
            with pytest.raises(TimeoutError):
                await attempt
        assert len(await parties[role].refusals()) >= len(attempts)

    async def test_a_request_that_names_a_subject_of_the_servers_does_no_harm(self, parties: dict[str, Party]) -> None:
        """What a client may not do it cannot have a worker do, whether or not the worker looks at the subject."""
        worker, client = parties["worker"], parties["client"]
        requests = await worker.nc.subscribe("ml.generate", queue="ml")
        await settled(worker.nc)
        await client.nc.publish("ml.generate", b"x", reply="$JS.API.STREAM.DELETE.ML_JOBS")
        assert await client.refusals() == []
        request = await requests.next_msg(5)
        assert not ReplySubjects(PREFIXES).allow(request.reply)
        await worker.nc.publish(request.reply, b"")
        assert [refusal.operation for refusal in await worker.refusals()] == ["publish"]
        await parties["admin"].nc.jetstream().stream_info("ML_JOBS")


class TestJetStreamWithTheSubjectsOfLaterServers(TestJetStream):
    """Acknowledgements and flow control by the subjects of ADR-15's second form, which carry domain and account."""

    @pytest.fixture
    def secured_server(self, tmp_path: Path) -> Iterator[NatsServer]:
        conf = tmp_path / "nats-server.conf"
        conf.write_text(CONF.read_text() + "feature_flags { js_ack_fc_v2: true }\n")
        server = secured(tmp_path / "nats", conf=conf)
        try:
            yield server.start()
        finally:
            server.stop()

    async def test_the_server_does_use_them(self, parties: dict[str, Party]) -> None:
        js = parties["worker"].nc.jetstream()
        await js.publish("ml.queue.finetune.j1", b"a job")
        (job,) = await (await js.pull_subscribe_bind("workers", "ML_JOBS")).fetch(1, timeout=5)
        assert re.fullmatch(r"\$JS\.ACK\.[^.]+\.[^.]+\.ML_JOBS\.workers\..*", job.reply)


@pytest.fixture
async def system(secured_server: NatsServer) -> AsyncIterator[Client]:
    async with party("system", secured_server) as one:
        yield one.nc


class TestTheSystemAccount:
    """Who looks after the server, and is no party to what it carries."""

    async def test_it_asks_the_server(self, system: Client) -> None:
        answer = json.loads((await system.request("$SYS.REQ.SERVER.PING.JSZ", b"", timeout=5)).data)
        assert answer["server"]["name"] == "mlbus"

    @pytest.mark.parametrize("role", ["worker", "client", "local"])
    async def test_others_may_not(self, parties: dict[str, Party], role: str) -> None:
        await parties[role].nc.publish("$SYS.REQ.SERVER.PING", b"", reply=parties[role].nc.new_inbox())
        assert await parties[role].refusals() == [Denied("publish", "$sys.req.server.ping")]

    async def test_to_the_administrator_nobody_answers(self, parties: dict[str, Party]) -> None:
        with pytest.raises(NoRespondersError):
            await parties["admin"].nc.request("$SYS.REQ.SERVER.PING", b"", timeout=5)

    async def test_it_has_no_jetstream_and_the_others_keep_theirs(
        self, system: Client, parties: dict[str, Party]
    ) -> None:
        await setup.create(parties["admin"].nc)
        with pytest.raises(ServiceUnavailableError, match="not enabled for account"):
            await system.jetstream().account_info()
        assert (await parties["worker"].nc.jetstream().account_info()).streams == 4

    async def test_no_request_of_its_reaches_a_worker(self, system: Client, parties: dict[str, Party]) -> None:
        await parties["worker"].nc.subscribe("ml.embed", queue="ml")
        await settled(parties["worker"].nc)
        with pytest.raises(NoRespondersError):
            await system.request("ml.embed", b"hello", timeout=5)


class TestTracing:
    """`nats trace`: the server says on a subject of the asker's where a message would go, and delivers none."""

    async def test_the_administrator_sees_the_way_to_the_worker(self, parties: dict[str, Party]) -> None:
        admin, worker = parties["admin"].nc, parties["worker"].nc
        requests = await worker.subscribe("ml.embed", queue="ml")
        await settled(worker)
        told = await admin.subscribe(inbox := admin.new_inbox())
        headers = {"Nats-Trace-Dest": inbox, "Nats-Trace-Only": "true"}
        await admin.publish("ml.embed", b"hello", headers=headers)
        events = json.loads((await told.next_msg(5)).data)["events"]
        assert [event["queue"] for event in events if event["type"] == "eg"] == ["ml"]
        assert requests.pending_msgs == 0

    @pytest.mark.parametrize("role", ["client", "local", "worker"])
    async def test_who_may_not_publish_to_an_inbox_may_not_trace(self, parties: dict[str, Party], role: str) -> None:
        one = parties[role]
        inbox = one.nc.new_inbox()
        await one.nc.publish("ml.embed.batch", b"hello", headers={"Nats-Trace-Dest": inbox, "Nats-Trace-Only": "true"})
        assert await one.refusals() == [Denied("publish", inbox.lower())]


class TestTheFileOnItsOwn:
    """nats-server.conf as its own comments say to use it."""

    @pytest.mark.parametrize("missing", ["MLBUS_DATA_DIR", "MLBUS_ADMIN_PASSWORD", "MLBUS_SYSTEM_PASSWORD"])
    def test_a_missing_variable_is_named(self, tmp_path: Path, missing: str) -> None:
        server = secured(tmp_path)
        del server.environ[missing]
        with pytest.raises(AssertionError, match=f"'{missing}' on line \\d+ can not be found"):
            server.start()

    async def test_a_hashed_password(self, tmp_path: Path) -> None:
        hashed = '"$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"'
        server = secured(tmp_path, environ={"MLBUS_ADMIN_PASSWORD": hashed})
        try:
            async with connected(NatsSettings(url=server.start().url, user="admin", password="U*U")) as nc:
                assert nc.max_payload == 8 * 2**20
        finally:
            server.stop()
