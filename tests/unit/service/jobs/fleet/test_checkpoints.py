"""Versions in the object bucket: sent and fetched whole or not at all, listed, removed."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.object_store import ObjectStore
from trained_versions import is_whole, trained

from models.errors import UnknownVersion
from models.weights.archive import BadArchive
from models.weights.versions import keep, versions
from service.jobs import setup
from service.jobs.bucket import NotSetUp
from service.jobs.fleet import checkpoints as module
from service.jobs.fleet.checkpoints import BucketFull, Checkpoints
from subjects import names


@pytest.fixture
async def nc(nats_url: str) -> AsyncIterator[Client]:
    async with await nats.connect(nats_url) as client:
        yield client


@pytest.fixture
async def bucket(nc: Client) -> ObjectStore:
    await setup.create(nc)
    return await nc.jetstream().object_store(names.CHECKPOINTS_BUCKET)


def on(nats_url: str, folder: Path) -> Checkpoints:
    @asynccontextmanager
    async def connect() -> AsyncIterator[Client]:
        async with await nats.connect(nats_url) as client:
            yield client

    return Checkpoints(connect, folder)


@pytest.fixture
def ours(nats_url: str, tmp_path: Path) -> Checkpoints:
    return on(nats_url, tmp_path / "ours")


@pytest.fixture
def theirs(nats_url: str, tmp_path: Path) -> Checkpoints:
    return on(nats_url, tmp_path / "theirs")


def make(checkpoints: Checkpoints, text: str = "weights", day: int = 0) -> str:
    candidate = checkpoints.folder / "candidate"
    version = trained(candidate, text, day=day)
    keep(candidate, checkpoints.folder, "mine", version)
    return version


def left_over(checkpoints: Checkpoints) -> list[str]:
    folder = checkpoints.folder / "mine"
    return [path.name for path in folder.iterdir() if path.name.startswith(".")] if folder.is_dir() else []


async def pieces(nc: Client) -> int:
    return int((await nc.jetstream().stream_info(module.STREAM)).state.messages)


def cut_off_transfers(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    reached = asyncio.Event()
    loop = asyncio.get_running_loop()
    run = loop.run_in_executor
    calls = 0

    async def run_once(executor: Any, work: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += getattr(work, "__name__", "") in ("readinto", "write")
        if calls > 1:
            reached.set()
            await asyncio.Event().wait()
        return await run(executor, work, *arguments)

    monkeypatch.setattr(loop, "run_in_executor", run_once)
    return reached


@pytest.mark.usefixtures("bucket")
class TestBothWays:
    async def test_a_version_is_the_same_on_another_machine(self, ours: Checkpoints, theirs: Checkpoints) -> None:
        version = make(ours, "weights " * 100_000)
        sha256 = await ours.publish("mine", version)
        assert await theirs.sha256("mine", version) == sha256
        folder = await theirs.fetch("mine", version, sha256)
        assert folder == theirs.folder / "mine" / version
        assert is_whole(folder)
        assert await theirs.fetch("mine", version, None) == folder
        assert (left_over(ours), left_over(theirs)) == ([], [])

    async def test_to_send_it_again_sends_nothing(self, ours: Checkpoints, nc: Client) -> None:
        version = make(ours)
        sha256 = await ours.publish("mine", version)
        before = (await nc.jetstream().stream_info(module.STREAM)).state.last_seq
        assert await ours.publish("mine", version) == sha256
        assert (await nc.jetstream().stream_info(module.STREAM)).state.last_seq == before

    async def test_other_bytes_than_promised_are_refused(self, ours: Checkpoints, theirs: Checkpoints) -> None:
        version = make(ours)
        await ours.publish("mine", version)
        with pytest.raises(BadArchive, match="its SHA-256 is"):
            await theirs.fetch("mine", version, "0" * 64)
        assert (versions(theirs.folder, "mine"), left_over(theirs)) == (("base",), [])

    async def test_a_version_that_is_nowhere_is_unknown(self, ours: Checkpoints) -> None:
        with pytest.raises(UnknownVersion):
            await ours.fetch("mine", "nope", "0" * 64)
        with pytest.raises(UnknownVersion):
            await ours.fetch("mine", "nope", None)
        for version in ("nope", "base"):
            with pytest.raises(UnknownVersion):
                await ours.publish("mine", version)
        assert await ours.sha256("mine", "nope") is None
        assert left_over(ours) == []

    async def test_two_on_one_disk_fetch_the_same(self, ours: Checkpoints, theirs: Checkpoints) -> None:
        version = make(ours)
        sha256 = await ours.publish("mine", version)
        found = await asyncio.gather(*(theirs.fetch("mine", version, sha256) for _ in range(4)))
        assert len(set(found)) == 1
        assert is_whole(found[0])
        assert left_over(theirs) == []

    async def test_what_is_listed_can_be_removed(self, ours: Checkpoints, nc: Client) -> None:
        assert await ours.list() == []
        one, two = make(ours), make(ours, "others", day=1)
        for version in (one, two):
            await ours.publish("mine", version)
        listed = await ours.list()
        assert {(each.model, each.version) for each in listed} == {("mine", one), ("mine", two)}
        assert all(abs(datetime.now(UTC) - each.at) < timedelta(minutes=1) for each in listed)
        await ours.remove("mine", one)
        await ours.remove("mine", one)
        await ours.remove("mine", "nope")
        assert [each.version for each in await ours.list()] == [two]
        assert await ours.sha256("mine", one) is None
        assert await pieces(nc) == 3  # what is left of one says that it was deleted
        await ours.publish("mine", one)
        assert len(await ours.list()) == 2


class TestCutOff:
    @pytest.fixture
    def cut_off(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], asyncio.Event]:
        """From the call on a transfer's first piece goes through, and then no other; the event is set then."""
        return lambda: cut_off_transfers(monkeypatch)

    async def test_a_put_leaves_no_name_and_its_pieces_go_in_time(
        self,
        ours: Checkpoints,
        nc: Client,
        bucket: ObjectStore,
        cut_off: Callable[[], asyncio.Event],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        version = make(ours, "weights " * 100_000)
        reached = cut_off()
        sending = asyncio.create_task(ours.publish("mine", version))
        await reached.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        monkeypatch.undo()
        assert (await ours.sha256("mine", version), left_over(ours)) == (None, [])
        assert await pieces(nc) == 1
        other = make(ours, "others", day=1)
        await ours.publish("mine", other)
        assert await pieces(nc) == 3  # they may be another worker's that is about to go on
        monkeypatch.setattr(module, "ABANDONED_AFTER", timedelta(0))
        await ours.publish("mine", other)
        assert await pieces(nc) == 2
        assert await ours.sha256("mine", other) is not None

    async def test_a_fetch_leaves_nothing_on_the_disk(
        self, ours: Checkpoints, theirs: Checkpoints, bucket: ObjectStore, cut_off: Callable[[], asyncio.Event]
    ) -> None:
        version = make(ours, "weights " * 100_000)
        sha256 = await ours.publish("mine", version)
        reached = cut_off()
        fetching = asyncio.create_task(theirs.fetch("mine", version, sha256))
        await reached.wait()
        assert left_over(theirs) != []
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert (versions(theirs.folder, "mine"), left_over(theirs)) == (("base",), [])

    async def test_a_server_that_goes_silent_is_not_waited_for(
        self,
        ours: Checkpoints,
        bucket: ObjectStore,
        cut_off: Callable[[], asyncio.Event],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(module, "TRANSFER_S", 0.3)
        cut_off()
        with pytest.raises(TimeoutError):
            await ours.publish("mine", make(ours, "weights " * 100_000))
        assert left_over(ours) == []


async def test_a_full_bucket_says_what_to_do(ours: Checkpoints, nc: Client, bucket: ObjectStore) -> None:
    config = (await nc.jetstream().stream_info(module.STREAM)).config
    await nc.jetstream().update_stream(config.evolve(max_bytes=200_000))
    with pytest.raises(BucketFull, match=r"does not fit .*finetune\.keep_versions"):
        await ours.publish("mine", make(ours, "weights " * 100_000))
    assert (await ours.list(), left_over(ours), await pieces(nc)) == ([], [], 0)


async def test_without_the_bucket_it_is_not_set_up(ours: Checkpoints) -> None:
    version = make(ours)
    for question in (ours.publish("mine", version), ours.sha256("mine", "v"), ours.list(), ours.remove("mine", "v")):
        with pytest.raises(NotSetUp):
            await question
    assert left_over(ours) == []


async def test_objects_of_others_are_left_alone(ours: Checkpoints, bucket: ObjectStore) -> None:
    await bucket.put("unlike-ours", io.BytesIO(b"x"))
    assert await ours.list() == []
