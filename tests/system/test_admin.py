"""`mlbus admin` and what it makes, asked of the real server."""

import json
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import RetentionPolicy, StreamConfig
from nats_server import CONF, PASSWORDS, NatsServer, plain_server
from shell import Shell

from service.bus.causes import Denied
from service.bus.connection import connected, settled
from service.bus.credentials import inbox_prefix
from service.bus.embedded import EmbeddedSettings, embedded_server
from service.bus.settings import NatsSettings
from service.jobs import setup
from service.jobs.bucket import NotSetUp
from service.jobs.store import JobStore
from subjects import names

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
        as_role = {"NATS_USER": role, "NATS_PASSWORD": PASSWORDS[role], "NATS_INBOX_PREFIX": inbox_prefix(role)}
    return await admin(folder, "init", *arguments, NATS_URL=server.url, **as_role)


async def admin(folder: Path, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `mlbus admin`."""
    ended = await Shell(folder, command=("admin",), variables=variables).run(*arguments)
    return ended.code, ended.out, ended.err


async def test_everything_is_made_once(nc: Client) -> None:
    assert len(await setup.outdated(nc)) == 5
    assert await setup.create(nc) == MADE
    assert await setup.outdated(nc) == []
    assert await setup.create(nc) == []


async def test_what_it_makes_is_bounded_and_in_order(nc: Client) -> None:
    await setup.create(nc)
    js = nc.jetstream()
    queue = (await js.stream_info(names.JOBS_STREAM)).config
    assert (queue.retention, queue.subjects, queue.duplicate_window) == ("workqueue", ["ml.queue.>"], 86_400)
    assert queue.max_msgs == 33
    consumer = (await js.consumer_info(names.JOBS_STREAM, setup.CONSUMER)).config
    assert (consumer.max_ack_pending, consumer.max_deliver, consumer.ack_wait) == (1, -1, 60)
    data = (await js.stream_info("OBJ_ml_data")).config
    assert (data.max_age, data.max_bytes) == (86_400, 4 * 2**30)
    assert data.max_msgs_per_subject * data.max_msg_size < 1.2e9  # an object
    promised = [(await js.stream_info(storage.stream)).config.max_bytes for storage in setup.STORAGE]
    assert min(promised) > 0
    assert sum(promised) < 32 * 2**30
    assert await JobStore(nc).list() == []


async def test_what_differs_is_changed_and_what_is_kept_stays(nc: Client) -> None:
    await setup.create(nc)
    js = nc.jetstream()
    await js.publish(names.job_queue_subject("j1"), b"waits")
    config = (await js.stream_info(names.JOBS_STREAM)).config
    await js.update_stream(config.evolve(max_msgs=5, duplicate_window=60))
    consumer = (await js.consumer_info(names.JOBS_STREAM, setup.CONSUMER)).config
    await js.add_consumer(names.JOBS_STREAM, consumer.evolve(ack_wait=5))
    differing = [
        "stream ML_JOBS: duplicate_window 60.0 to 86400.0, max_msgs 5 to 33",
        "consumer workers: ack_wait 5.0 to 60.0",
    ]
    assert await setup.outdated(nc) == differing
    assert await setup.create(nc) == [f"changed {what}" for what in differing]
    info = await js.stream_info(names.JOBS_STREAM)
    assert (info.config.max_msgs, info.config.duplicate_window, info.state.messages) == (33, 86_400, 1)
    assert await setup.create(nc) == []


async def test_one_that_was_made_otherwise_is_named(nc: Client) -> None:
    await nc.jetstream().add_stream(StreamConfig("MINE", subjects=["ml.queue.mine"], retention=RetentionPolicy.LIMITS))
    with pytest.raises(setup.CannotSetUp, match=r"no stream ML_JOBS .*overlap.*remove"):
        await setup.create(nc)


async def test_a_server_without_room_says_how_much_to_give(tmp_path: Path) -> None:
    conf = tmp_path / "small.conf"
    conf.write_text(f'jetstream {{ store_dir: "{tmp_path}/store", max_file_store: 2GB }}')
    server = NatsServer(tmp_path, "-c", str(conf))
    try:
        async with await nats.connect(server.start().url) as client:
            with pytest.raises(setup.CannotSetUp, match=r"bucket ml_checkpoints .*max_file_store"):
                await setup.create(client)
    finally:
        server.stop()


async def test_a_server_without_jetstream_says_what_to_do(tmp_path: Path) -> None:
    server = NatsServer(tmp_path)
    try:
        async with await nats.connect(server.start().url) as client:
            for question in (setup.create, setup.outdated):
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
        assert await setup.outdated(nc) == []


async def test_what_is_made_outlives_the_server(tmp_path: Path) -> None:
    server = plain_server(tmp_path)
    try:
        async with await nats.connect(server.start().url) as client:
            await setup.create(client)
        server.restart()
        async with await nats.connect(server.url) as client:
            assert await setup.create(client) == []
    finally:
        server.stop()


class TestUser:
    """`mlbus admin user`, whose entry nats-server.conf takes and whose password `mlbus admin context` finds."""

    async def test_it_gets_in_with_an_inbox_of_its_own(self, tmp_path: Path) -> None:
        code, block, said = await admin(tmp_path, "user", "alice")
        assert (code, "MLBUS_ALICE_PASSWORD is in var/nats-credentials.env" in said) == (0, True)
        _, as_admin, _ = await admin(tmp_path, "user", "bob", "--role", "admin")
        conf = tmp_path / "nats-server.conf"
        conf.write_text(CONF.read_text().replace("  users: [\n", f"  users: [\n{block}{as_admin}", 1))
        async with embedded_server(EmbeddedSettings(data_dir=tmp_path / "var", port=0, conf=conf)) as server:
            for name in ("alice", "bob"):
                code, out, err = await admin(tmp_path, "context", name, NATS_URL=server.url)
                assert (code, err, out.startswith(str(tmp_path))) == (0, "", True)
                ours = {"XDG_CONFIG_HOME": str(tmp_path), "NATS_CONTEXT": f"mlbus-{name}"}
                refused: list[Denied] = []
                async with connected(NatsSettings.from_env(ours), on_denied=refused.append) as nc:
                    assert nc.new_inbox().startswith(f"_INBOX_ml.{name}.")
                    await nc.subscribe(nc.new_inbox())
                    await nc.publish("ml.models.unload", b"x")
                    await settled(nc)
                assert bool(refused) == (name == "alice")

    async def test_its_password_stays_the_same(self, tmp_path: Path) -> None:
        code, out, err = await admin(tmp_path, "user", "alice", "--json")
        file = tmp_path / "var" / "nats-credentials.env"
        made = file.read_text()
        assert (code, err) == (0, "")
        assert json.loads(out)["variable"] == "MLBUS_ALICE_PASSWORD"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        await admin(tmp_path, "user", "alice")
        assert file.read_text() == made

    @pytest.mark.parametrize("name", ["worker", "local", "a.b", "*", "Alice", "a b", "", "a-b"])
    async def test_a_name_that_would_not_do_is_refused(self, tmp_path: Path, name: str) -> None:
        code, out, err = await admin(tmp_path, "user", name)
        assert (code, out) == (2, "")
        assert "a name is small letters" in err
        assert not (tmp_path / "var").exists()


class TestContext:
    """`mlbus admin context`, whose files the nats command reads and we do."""

    async def test_each_role_gets_in_with_its_own(self, secured_server: NatsServer, tmp_path: Path) -> None:
        for role, password in PASSWORDS.items():
            given = {f"MLBUS_{role.upper()}_PASSWORD": password}
            code, out, err = await admin(tmp_path, "context", role, NATS_URL=secured_server.url, **given)
            file = tmp_path / "nats" / "context" / f"mlbus-{role}.json"
            assert (code, err) == (0, "")
            assert out.startswith(f"{file}: {role} at {secured_server.url}\nTry: ")
            assert password not in out
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert json.loads(file.read_text()) == {
                "description": f"mlbus: the role {role}",
                "url": secured_server.url,
                "user": role,
                "password": password,
                "inbox_prefix": inbox_prefix(role),
            }
            ours = {"XDG_CONFIG_HOME": str(tmp_path), "NATS_CONTEXT": f"mlbus-{role}"}
            async with connected(NatsSettings.from_env(ours)) as nc:
                assert nc.new_inbox().startswith(f"{inbox_prefix(role)}.")

    async def test_beside_an_embedded_server_nothing_need_be_typed(self, tmp_path: Path) -> None:
        settings = EmbeddedSettings(data_dir=tmp_path / "var", port=0)
        async with embedded_server(settings) as server:
            code, out, err = await admin(tmp_path, "context", "client", "--select", "--json", NATS_URL=server.url)
            assert (code, err) == (0, "")
            assert json.loads(out) == {
                "context": "mlbus-client",
                "file": str(tmp_path / "nats" / "context" / "mlbus-client.json"),
                "url": server.url,
                "user": "client",
                "selected": True,
            }
            found = NatsSettings.from_env({"XDG_CONFIG_HOME": str(tmp_path)})
            assert found.context == "mlbus-client"
            async with connected(found):
                pass
        elsewhere = ("context", "client", "--data-dir", "elsewhere")
        assert await admin(tmp_path, *elsewhere, MLBUS_CLIENT_PASSWORD="x") == (
            2,
            "",
            "mlbus: MLBUS_CLIENT_PASSWORD: neither set nor in elsewhere/nats-credentials.env, where "
            "mlbus serve --embedded-nats puts it at its start\n",
        )

    async def test_what_else_is_known_of_the_server_goes_with_it(self, tmp_path: Path) -> None:
        (tmp_path / "nats" / "context").mkdir(parents=True)
        theirs = {"url": "tls://far:4", "user": "me", "password": "mine", "ca": "ca.pem", "tls_first": True}
        (tmp_path / "nats" / "context" / "theirs.json").write_text(json.dumps(theirs))
        secrets = {"MLBUS_CLIENT_PASSWORD": '"a b"', "NATS_CREDS": "x.creds"}
        assert (await admin(tmp_path, "context", "client", NATS_CONTEXT="theirs", **secrets))[0] == 0
        assert json.loads((tmp_path / "nats" / "context" / "mlbus-client.json").read_text()) == {
            "description": "mlbus: the role client",
            "url": "tls://far:4",
            "user": "client",
            "password": "a b",
            "inbox_prefix": "_INBOX_ml.client",
            "ca": str(tmp_path / "ca.pem"),
            "tls_first": True,
        }

    async def test_another_context_is_replaced_only_by_force(self, tmp_path: Path) -> None:
        asked = ("context", "client", "--name", "mine")
        file = tmp_path / "nats" / "context" / "mine.json"
        assert (await admin(tmp_path, *asked, MLBUS_CLIENT_PASSWORD="one"))[0] == 0
        assert (await admin(tmp_path, *asked, MLBUS_CLIENT_PASSWORD="two"))[0] == 0
        assert json.loads(file.read_text())["password"] == "two"
        for theirs in ('{"description": "mine", "url": "a"}', "{", "[]"):
            file.write_text(theirs)
            code, out, err = await admin(tmp_path, *asked, MLBUS_CLIENT_PASSWORD="x")
            assert (code, out, file.read_text()) == (2, "", theirs)
            assert f"{file}: is another context; choose another --name, or replace it with --force" in err
        assert (await admin(tmp_path, *asked, "--force", MLBUS_CLIENT_PASSWORD="x"))[0] == 0
        assert json.loads(file.read_text())["user"] == "client"

    @pytest.mark.parametrize("password", ["$2a$11$abc", '"$2a$11$abc"', "env:HOME", "OP://vault/item"])
    async def test_what_nobody_can_connect_with_is_refused(self, tmp_path: Path, password: str) -> None:
        code, out, err = await admin(tmp_path, "context", "client", MLBUS_CLIENT_PASSWORD=password)
        assert (code, out) == (2, "")
        assert "is a hash" in err or "which the nats command looks up" in err
        assert not (tmp_path / "nats").exists()

    async def test_selecting_notes_the_one_before(self, tmp_path: Path) -> None:
        for name in ("one", "two", "two"):
            asked = ("context", "admin", "--name", name, "--select")
            assert (await admin(tmp_path, *asked, MLBUS_ADMIN_PASSWORD="x"))[0] == 0
        assert (tmp_path / "nats" / "context.txt").read_text() == "two"
        assert (tmp_path / "nats" / "previous-context.txt").read_text() == "one"
        code, _, err = await admin(tmp_path, "context", "admin", "--name", "../x", MLBUS_ADMIN_PASSWORD="x")
        assert (code, "is not the name of a context" in err) == (2, True)
