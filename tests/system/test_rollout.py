"""A new version goes to every worker of a fleet, proves itself over the bus, or is undone; and back again."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import nats
import numpy as np
import pytest
from journal import Journal
from nats.aio.client import Client
from nats_server import NatsServer
from safetensors.numpy import load_file, save_file
from trained_versions import is_whole
from versioned_fleet import BASE_WEIGHTS, MODEL, Fleet, Member, until
from workers import running_worker

from models.catalogue import load_catalogue
from models.errors import ModelUnavailable
from models.loading.loader import LoadOptions, load
from models.training.encoding import encode_texts
from models.training.verify.check_texts import canary_texts, write_canary
from models.weights import hub
from models.weights.model_files import file_sha256
from models.weights.versions import (
    BASE,
    RECORD,
    TrainingRecord,
    keep,
    live_version,
    previous_version,
    version_name,
    versions,
)
from service.bus.connection import connected
from service.bus.settings import NatsSettings
from service.jobs import setup
from service.jobs.fleet.live import Live, LiveVersions
from service.jobs.fleet.rollout import RolledBack, Rollout
from service.residency.loader import ModelLoader
from service.settings import Settings
from subjects import MLClient, names
from subjects.errors import MLError

BASE12 = BASE_WEIGHTS[:12]


@pytest.fixture
async def nc(nats_url: str) -> AsyncIterator[Client]:
    async with await nats.connect(nats_url) as client:
        yield client


@pytest.fixture
async def fleet(nc: Client, nats_url: str, tmp_path: Path, journal: Journal) -> AsyncIterator[Fleet]:
    """Three workers that serve `base`."""
    await setup.create(nc)
    fleet = Fleet(nats_url, tmp_path)
    async with AsyncExitStack() as stack:
        for name in ("one", "two", "three"):
            await stack.enter_async_context(fleet.joined(name))
        yield fleet


@asynccontextmanager
async def requests(url: str) -> AsyncIterator[set[str]]:
    """Requests without a pause, none of which fails, before, while and after the context is open -> who answered."""
    answered: set[str] = set()
    over = asyncio.Event()

    async def ask(client: MLClient, number: int) -> None:
        answered.add((await client.embed(f"text {number}", model=MODEL)).version.partition("-")[0])

    async def caller(client: MLClient, number: int) -> None:
        while not over.is_set():
            await ask(client, number)
        await ask(client, number)

    async with await MLClient.connect(url) as client, asyncio.TaskGroup() as callers:
        client._transport.retries = 0
        await ask(client, 0)
        for number in range(8):
            callers.create_task(caller(client, number))
        try:
            yield answered
        finally:
            over.set()


async def named(nc: Client) -> Live:
    live = await LiveVersions(nc).get(MODEL)
    assert live is not None
    return live


def marks(member: Member) -> tuple[str, str | None]:
    """What the links of a worker say: what is live, and what was before."""
    return live_version(member.checkpoints, MODEL), previous_version(member.checkpoints, MODEL)


class TestGoLive:
    async def test_all_workers_serve_it_and_no_request_fails(self, fleet: Fleet, nc: Client) -> None:
        trainer = fleet.members[0]
        version = trainer.make("better")
        async with requests(fleet.url) as answered:
            assert await trainer.rollout.go_live(MODEL, version, "job-1") == []
        assert answered == {BASE12, version[-12:]}
        assert {member.serves for member in fleet.members} == {version[-12:]}
        for member in fleet.members:
            assert is_whole(member.checkpoints / MODEL / version)
            assert live_version(member.checkpoints, MODEL) == version
            assert previous_version(member.checkpoints, MODEL) == BASE
            assert member.loader.loaded == [BASE12, version[-12:]]
            assert [path.name for path in (member.checkpoints / MODEL).iterdir() if path.name.startswith(".")] == []
        live = await named(nc)
        assert (live.version, live.job, live.previous and live.previous.version) == (version, "job-1", BASE)
        assert live.weights_sha256 is not None
        assert live.weights_sha256.startswith(version[-12:])

    async def test_a_worker_that_starts_later_serves_it_from_the_start(self, fleet: Fleet) -> None:
        trainer = fleet.members[0]
        version = trainer.make("better")
        await trainer.rollout.go_live(MODEL, version, "job-1")
        async with fleet.joined("late") as late:
            assert late.loader.loaded == [version[-12:]]
            assert live_version(late.checkpoints, MODEL) == version

    async def test_one_after_the_other_each_remembers_what_was_before(self, fleet: Fleet, nc: Client) -> None:
        trainer, other = fleet.members[:2]
        first = trainer.make("better")
        await trainer.rollout.go_live(MODEL, first, "job-1")
        second = other.make("best", day=1)
        await other.rollout.go_live(MODEL, second, "job-2")
        assert {member.serves for member in fleet.members} == {second[-12:]}
        live = await named(nc)
        assert live.previous is not None
        assert (live.previous.version, live.previous.archive_sha256 is None) == (first, False)
        assert sorted(one.version for one in await trainer.rollout.checkpoints.list()) == sorted([first, second])

    async def test_begun_again_it_goes_on_also_on_another_worker(self, fleet: Fleet, nc: Client) -> None:
        trainer, other = fleet.members[:2]
        version = trainer.make("better")
        await trainer.rollout.go_live(MODEL, version, "job-1")
        before = await named(nc)
        assert await other.rollout.go_live(MODEL, version, "job-1") == []
        after = await named(nc)
        assert after.at > before.at
        assert after == before.model_copy(update={"at": after.at})
        assert other.loader.loaded == [BASE12, version[-12:]]

    async def test_vectors_that_differ_roll_it_back(self, fleet: Fleet, nc: Client) -> None:
        trainer = fleet.members[0]
        good = trainer.make("better")
        await trainer.rollout.go_live(MODEL, good, "job-1")
        bad = trainer.make("not what it promised", day=1, vectors_of="something else")
        async with requests(fleet.url) as answered:
            with pytest.raises(RolledBack, match=r"was rolled back: vectors came back with a cosine of"):
                await trainer.rollout.go_live(MODEL, bad, "job-2")
        assert answered == {good[-12:], bad[-12:]}
        assert {member.serves for member in fleet.members} == {good[-12:]}
        live = await named(nc)
        assert (live.version, live.job) == (good, None)
        for member in fleet.members:
            assert marks(member) == (good, BASE)
        async with fleet.joined("late") as late:
            assert late.serves == good[-12:]
            assert marks(late) == (good, BASE)

    async def test_the_first_one_rolls_back_to_base(self, fleet: Fleet, nc: Client) -> None:
        trainer = fleet.members[0]
        bad = trainer.make("not what it promised", vectors_of="something else")
        with pytest.raises(RolledBack):
            await trainer.rollout.go_live(MODEL, bad, "job-1")
        assert {member.serves for member in fleet.members} == {BASE12}
        assert (await named(nc)).version == BASE
        assert {marks(member) for member in fleet.members} == {(BASE, None)}

    async def test_cancelled_the_version_before_is_live(self, fleet: Fleet, nc: Client) -> None:
        trainer, slow = fleet.members[:2]
        version = trainer.make("better")
        slow.loader.entered.clear()
        slow.loader.gate.clear()
        going = asyncio.create_task(trainer.rollout.go_live(MODEL, version, "job-1"))
        await asyncio.to_thread(slow.loader.entered.wait, 30)
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        slow.loader.gate.set()
        assert (await named(nc)).version == BASE
        await fleet.until_all_serve(BASE12)

    async def test_who_has_lost_the_job_cannot_undo_it(self, fleet: Fleet, nc: Client) -> None:
        trainer, other, slow = fleet.members
        version = trainer.make("better")
        slow.loader.entered.clear()
        slow.loader.gate.clear()
        lost = asyncio.create_task(trainer.rollout.go_live(MODEL, version, "job-1"))
        await asyncio.to_thread(slow.loader.entered.wait, 30)
        before = await named(nc)
        await other.rollout.checkpoints.fetch(MODEL, version, before.archive_sha256)
        going_on = asyncio.create_task(other.rollout.go_live(MODEL, version, "job-1"))
        async with asyncio.timeout(30), aclosing(LiveVersions(nc).watch()) as changes:
            while (await anext(changes))[1].at == before.at:
                pass
        lost.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lost
        slow.loader.gate.set()
        assert await going_on == []
        assert (await named(nc)).version == version

    async def test_a_worker_that_cannot_is_noted_and_keeps_the_old(self, fleet: Fleet) -> None:
        trainer, weak = fleet.members[:2]
        first = trainer.make("good")
        await trainer.rollout.go_live(MODEL, first, "job-1")
        version = trainer.make("better", day=1)
        weak.loader.fails[version[-12:]] = ModelUnavailable(MODEL, "no room on the device")
        trainer.rollout._swap_timeout_s = 4.0
        (note,) = await trainer.rollout.go_live(MODEL, version, "job-2")
        assert note.startswith("1 of 3 workers still serve another version: ")
        assert [member.serves for member in fleet.members] == [version[-12:], first[-12:], version[-12:]]
        assert [marks(member) for member in fleet.members] == [(version, first), (first, BASE), (version, first)]

    async def test_what_nobody_can_serve_is_rolled_back(self, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("service.jobs.fleet.canary.ROUND_S", 2.0)
        trainer = fleet.members[0]
        version = trainer.make("better")
        for member in fleet.members:
            member.loader.fails[version[-12:]] = ModelUnavailable(MODEL, "no room on the device")
        trainer.rollout._swap_timeout_s = 1.0
        with pytest.raises(RolledBack, match=f"0 of 6 answers came within 2 s; version {BASE12}-fp32 answered"):
            await trainer.rollout.go_live(MODEL, version, "job-1")

    async def test_a_version_without_what_it_promised_changes_nothing(self, fleet: Fleet, nc: Client) -> None:
        trainer = fleet.members[0]
        version = trainer.make("better")
        (trainer.checkpoints / MODEL / version / "report" / "vectors.safetensors").unlink()
        with pytest.raises(FileNotFoundError):
            await trainer.rollout.go_live(MODEL, version, "job-1")
        assert await LiveVersions(nc).get(MODEL) is None

    async def test_the_server_restarts_meanwhile(self, fleet: Fleet, nats_server: NatsServer, nc: Client) -> None:
        trainer, slow = fleet.members[:2]
        version = trainer.make("better")
        slow.loader.entered.clear()
        slow.loader.gate.clear()
        going = asyncio.create_task(trainer.rollout.go_live(MODEL, version, "job-1"))
        await asyncio.to_thread(slow.loader.entered.wait, 30)
        await asyncio.to_thread(nats_server.restart)
        slow.loader.gate.set()
        assert await going == []
        assert {member.serves for member in fleet.members} == {version[-12:]}


class TestFollowing:
    async def test_a_spoilt_archive_is_refused_and_later_versions_come(
        self, fleet: Fleet, nc: Client, journal: Journal
    ) -> None:
        trainer, other = fleet.members[:2]
        version = trainer.make("better")
        sha256 = await trainer.rollout.checkpoints.publish(MODEL, version)
        await (await nc.jetstream().object_store(names.CHECKPOINTS_BUCKET)).put(f"{MODEL}/{version}", b"spoilt")
        spoilt = Live(version=version, archive_sha256=sha256, at=datetime.now(UTC))
        await LiveVersions(nc).change(MODEL, lambda _: spoilt)
        for _ in range(2):
            line = await journal.until("version.not_followed")
            assert "its SHA-256 is" in line["reason"]
        await trainer.until_serves(version[-12:])  # it has its own
        assert other.serves == BASE12
        assert versions(other.checkpoints, MODEL) == (BASE,)
        later = trainer.make("best", day=1)
        await trainer.rollout.go_live(MODEL, later, "job-2")
        assert {member.serves for member in fleet.members} == {later[-12:]}

    async def test_a_worker_starts_although_the_live_version_is_not_to_be_had(
        self, fleet: Fleet, nc: Client, journal: Journal
    ) -> None:
        gone = Live(version="gone", archive_sha256="0" * 64, at=datetime.now(UTC))
        await LiveVersions(nc).change(MODEL, lambda _: gone)
        async with fleet.joined("late") as late:
            assert late.serves == BASE12
        assert "has no version 'gone'" in (await journal.until("version.not_followed"))["reason"]

    async def test_after_the_server_was_away_changes_still_come(self, fleet: Fleet, nats_server: NatsServer) -> None:
        await asyncio.to_thread(nats_server.kill)
        await asyncio.to_thread(nats_server.start)
        trainer = fleet.members[0]
        version = trainer.make("better")
        assert await trainer.rollout.go_live(MODEL, version, "job-1") == []
        assert {member.serves for member in fleet.members} == {version[-12:]}

    async def test_a_model_that_is_not_loaded_is_loaded_in_its_live_version(self, fleet: Fleet) -> None:
        async with await MLClient.connect(fleet.url) as client:
            await asyncio.gather(
                *(member.started.manager.evictor.unload(MODEL, force=True) for member in fleet.members)
            )
            version = fleet.members[0].make("better")
            assert await fleet.members[0].rollout.go_live(MODEL, version, "job-1") == []
            assert (await client.embed("text", model=MODEL)).version.startswith(version[-12:])


class TestGoBack:
    @pytest.fixture
    async def live(self, fleet: Fleet) -> tuple[str, str]:
        """Two versions, of which the second is live."""
        trainer = fleet.members[0]
        first, second = trainer.make("better"), trainer.make("best", day=1)
        for version in (first, second):
            await trainer.rollout.go_live(MODEL, version, "job")
        return first, second

    async def test_a_reload_with_a_version_takes_the_fleet_back(
        self, fleet: Fleet, nc: Client, live: tuple[str, str]
    ) -> None:
        first, second = live
        async with await MLClient.connect(fleet.url) as client, requests(fleet.url) as answered:
            reply = await client.models.reload(MODEL, version=first)
            assert reply.loaded is not None
            assert reply.loaded.version.startswith(first[-12:])
            await fleet.until_all_serve(first[-12:])
        assert answered == {first[-12:], second[-12:]}
        now = await named(nc)
        assert (now.version, now.job, now.previous and now.previous.version) == (first, None, second)
        async with fleet.joined("late") as late:
            assert late.serves == first[-12:]

    async def test_base_needs_no_archive(self, fleet: Fleet, nc: Client, live: tuple[str, str]) -> None:
        async with await MLClient.connect(fleet.url) as client:
            await client.models.reload(MODEL, version=BASE)
        await fleet.until_all_serve(BASE12)
        assert (await named(nc)).version == BASE
        assert {live_version(member.checkpoints, MODEL) for member in fleet.members} == {BASE}

    async def test_one_worker_alone_tries_another_until_the_next_change(
        self, fleet: Fleet, nc: Client, live: tuple[str, str]
    ) -> None:
        first, second = live
        async with fleet.joined("late") as late, await MLClient.connect(fleet.url) as client:
            assert versions(late.checkpoints, MODEL) == (BASE, second)
            workers = {answer["id"]: answer for answer in await client.discover("PING")}
            assert len(workers) == 4
            before = await named(nc)
            for worker in workers:
                reply = await client.models.reload(MODEL, version=first, worker=worker)
                assert reply.loaded is not None
                assert reply.loaded.version.startswith(first[-12:])
            assert await named(nc) == before
            assert {live_version(member.checkpoints, MODEL) for member in fleet.members} == {second}
            await client.models.reload(MODEL)
            await fleet.until_all_serve(second[-12:])

    async def test_an_unknown_version_changes_nothing(self, fleet: Fleet, nc: Client, live: tuple[str, str]) -> None:
        before = await named(nc)
        async with await MLClient.connect(fleet.url) as client:
            with pytest.raises(MLError, match="has no version 'nope'"):
                await client.models.reload(MODEL, version="nope")
        assert await named(nc) == before
        assert {member.serves for member in fleet.members} == {live[1][-12:]}

    async def test_of_what_only_one_worker_has_all_get_it(self, fleet: Fleet, nc: Client) -> None:
        own = fleet.members[1].make("kept, and not swapped in")
        await fleet.members[1].rollout.go_back(MODEL, own)
        await fleet.until_all_serve(own[-12:])
        assert (await named(nc)).version == own


async def test_without_the_streams_all_is_local(nats_url: str, tmp_path: Path, journal: Journal) -> None:
    fleet = Fleet(nats_url, tmp_path)
    async with (
        fleet.joined("one") as one,
        fleet.joined("two") as two,
        await MLClient.connect(nats_url) as client,
    ):
        version = one.make("better")
        for worker in [answer["id"] for answer in await client.discover("PING")]:
            with suppress(MLError):  # one of two has it
                await client.models.reload(MODEL, version=version, worker=worker)
        assert (one.serves, two.serves) == (version[-12:], BASE12)
        await client.models.reload(MODEL)
        await fleet.until_all_serve(BASE12)
        with suppress(MLError):  # either may answer first
            await client.models.reload(MODEL, version=version)
        await one.until_serves(version[-12:])
        assert (one.serves, two.serves) == (version[-12:], BASE12)
    assert [line["event"] for line in journal.lines].count("live_versions.not_set_up") == 2


class TestRealWeights:
    """The same with all-MiniLM-L6-v2: its own loader, its own vectors."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Its weights, changed a little."""
        folder = tmp_path / "candidate"
        shutil.copytree(hub.locate(load_catalogue().get("minilm"), download=False), folder)
        weights = load_file(folder / "model.safetensors")
        name = "encoder.layer.5.output.dense.weight"
        noise = np.random.default_rng(0).normal(scale=0.05, size=weights[name].shape).astype(np.float32)
        save_file({**weights, name: weights[name] + noise}, folder / "model.safetensors", {"format": "pt"})
        return folder

    @pytest.fixture
    def version(self, folder: Path, tmp_path: Path) -> str:
        """That as a version on the first worker's machine, with the vectors that must come back."""
        spec = load_catalogue().get("minilm")
        with closing(load(spec, LoadOptions(device="cpu", folder=folder))) as encoder:
            texts = canary_texts()
            (folder / "report").mkdir()
            write_canary(folder / "report", texts, encode_texts(encoder, texts))
        record = TrainingRecord(
            model="minilm",
            job="job",
            parent=BASE,
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            weights_sha256=file_sha256(folder / "model.safetensors"),
            options={},
            data={},
            metrics={},
        )
        (folder / RECORD).write_text(record.model_dump_json())
        name = version_name(record.created_at, record.weights_sha256)
        keep(folder, tmp_path / "one" / "checkpoints", "minilm", name)
        return name

    @pytest.mark.slow
    async def test_two_workers_swap_and_go_back(self, nats_url: str, nc: Client, tmp_path: Path, version: str) -> None:
        await setup.create(nc)
        settings = NatsSettings(url=nats_url)
        one, other = (
            running_worker(
                nats_url, loader=ModelLoader(Settings(data_dir=tmp_path / name, device="cpu")), data_dir=tmp_path / name
            )
            for name in ("one", "two")
        )
        async with one as started, other as beside, await MLClient.connect(nats_url) as client:
            before = await client.embed("def hello(): pass")
            checkpoints = tmp_path / "one" / "checkpoints"
            rollout = Rollout(nc, started.manager, lambda: connected(settings), checkpoints)
            assert await rollout.go_live("minilm", version, "job") == []
            after = await client.embed("def hello(): pass")
            assert after.version.startswith(version[-12:])
            assert 0.5 < float(np.dot(before.embedding, after.embedding)) < 0.9999
            await client.models.reload("minilm", version=BASE)
            for each in (started, beside):
                await until(each.manager, "minilm", before.version)
            assert np.array_equal((await client.embed("def hello(): pass")).embedding, before.embedding)
