"""What fine-tuning leaves behind: what goes by count and age, and what never does."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from trained_versions import serve, trained

from models.weights.versions import keep, versions
from service.jobs import setup
from service.jobs.bucket import NotSetUp
from service.jobs.fleet.checkpoints import Archived, Checkpoints
from service.jobs.fleet.live import Live, LiveVersion, LiveVersions
from service.jobs.pruning import Pruning
from service.jobs.store import JobStore
from service.settings import Settings
from subjects.jobs import Job
from subjects.names import JobState

NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=400)


def job(job_id: str, state: JobState, model: str = "mine") -> Job:
    return Job(id=job_id, model=model, source="code", state=state, created_at=NOW, updated_at=NOW)


class Fleet:
    """The jobs, the live versions and the archives. failure: what every question to the server raises."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.live: dict[str, Live] = {}
        self.archived: list[Archived] = []
        self.failure: Exception | None = None

    def _fail(self) -> None:
        if self.failure:
            raise self.failure


class FakeJobs(Fleet):
    async def get(self, job_id: str) -> Job | None:
        self._fail()
        return next((job for job in self.jobs if job.id == job_id), None)

    async def list(self, *, limit: int) -> list[Job]:
        self._fail()
        return self.jobs[:limit]

    async def all(self) -> Mapping[str, Live]:
        self._fail()
        return self.live


class FakeArchives:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def list(self) -> Sequence[Archived]:
        return tuple(self._fleet.archived)

    async def remove(self, model: str, version: str) -> None:
        self._fleet.archived = [one for one in self._fleet.archived if (one.model, one.version) != (model, version)]


@pytest.fixture
def fleet() -> FakeJobs:
    return FakeJobs()


def pruning(fleet: FakeJobs, data: Path, keep_versions: int = 1, keep_days: int = 30, candidates: int = 1) -> Pruning:
    keep = {"keep_versions": keep_versions, "keep_days": keep_days, "candidates": candidates}
    settings = Settings(data_dir=data, finetune=keep)
    return Pruning(settings, fleet, fleet, FakeArchives(fleet))


def made(data: Path, *days: int, model: str = "mine", **report: bool) -> list[str]:
    """Versions that were made so many days after the first of 2026, oldest first."""
    names = []
    for day in days:
        name = trained(data / "candidate", f"weights {day}", day=day, **report)
        keep(data / "candidate", data / "checkpoints", model, name)
        names.append(name)
    return names


def live(*served: str) -> Live:
    """The live version, and what served before it, the latest first."""
    return Live(version=served[0], previous=LiveVersion(version="base"), served=served, at=NOW)


def kept(data: Path, model: str = "mine") -> set[str]:
    return set(versions(data / "checkpoints", model)) - {"base"}


async def test_versions_that_served_go_by_count_and_age(fleet: FakeJobs, tmp_path: Path) -> None:
    one, two, three = made(tmp_path, 0, 1, 2)
    serve(tmp_path / "checkpoints", "mine", three)
    fleet.live = {"mine": live(three, two, one)}
    await pruning(fleet, tmp_path, keep_versions=3, keep_days=0).run()
    await pruning(fleet, tmp_path, keep_versions=0, keep_days=10**9).run()
    assert kept(tmp_path) == {one, two, three}
    await pruning(fleet, tmp_path, keep_versions=1, keep_days=0).run()
    assert kept(tmp_path) == {three}


async def test_of_those_that_never_served_a_few_stay_however_young(fleet: FakeJobs, tmp_path: Path) -> None:
    served, *passed = made(tmp_path, 0, 1, 2, 3, accepted=True)
    rejected = made(tmp_path, 4, 5, 6, accepted=False)
    serve(tmp_path / "checkpoints", "mine", served)
    fleet.live = {"mine": live(served)}
    await pruning(fleet, tmp_path, keep_versions=9, keep_days=10**9, candidates=2).run()
    assert kept(tmp_path) == {served, *passed[1:], *rejected[1:]}


async def test_the_live_and_the_previous_version_stay(fleet: FakeJobs, tmp_path: Path) -> None:
    one, two, three, four = made(tmp_path, 0, 1, 2, 3)
    serve(tmp_path / "checkpoints", "mine", one)
    serve(tmp_path / "checkpoints", "mine", three)
    fleet.live = {"mine": live(three, one, two)}
    await pruning(fleet, tmp_path, keep_versions=0, keep_days=0).run()
    assert kept(tmp_path) == {one, three, four}


async def test_nothing_of_a_model_goes_while_a_job_works_on_it(fleet: FakeJobs, tmp_path: Path) -> None:
    mine, others = made(tmp_path, 0, 1), made(tmp_path, 0, 1, model="other")
    fleet.jobs = [job("j1", "swapping"), job("j2", "queued", "other"), job("j3", "done", "other")]
    await pruning(fleet, tmp_path, keep_versions=1, keep_days=0).run()
    assert kept(tmp_path) == set(mine)
    assert kept(tmp_path, "other") == {others[1]}


async def test_training_data_goes_by_the_same_rule(fleet: FakeJobs, tmp_path: Path) -> None:
    folder = tmp_path / "training_data"
    folder.mkdir()
    days = [f"{NOW - timedelta(days=ago):%Y-%m-%d}" for ago in (0, 40, 50)]
    for day in days:
        (folder / f"day-{day}.jsonl").write_text("{}")
        (folder / f"day-{day}.manifest.json").write_text("{}")
    (folder / "notes.txt").write_text("mine")
    await pruning(fleet, tmp_path, keep_versions=2).run()
    assert {path.name for path in folder.glob("*.jsonl")} == {f"day-{day}.jsonl" for day in days[:2]}
    assert (folder / "notes.txt").exists()


async def test_runs_go_of_jobs_that_are_over_or_unknown(fleet: FakeJobs, tmp_path: Path) -> None:
    for name in ("waits", "trains", "failed", "unknown", ".building"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").write_text("{}")
    fleet.jobs = [job("waits", "queued"), job("trains", "training"), job("failed", "failed")]
    await pruning(fleet, tmp_path).run()
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"waits", "trains", ".building"}


async def test_archives_go_that_nobody_needs(fleet: FakeJobs, tmp_path: Path) -> None:
    names = ["newest", "young", "live", "previous", "served", "gone"]
    ages = [1, 2, 401, 402, 403, 404]
    archived = [Archived("mine", name, NOW - timedelta(days=age)) for name, age in zip(names, ages, strict=True)]
    fleet.archived = [*archived, Archived("busy", "old", LONG_AGO), Archived("busy", "new", NOW)]
    previous = LiveVersion(version="previous")
    fleet.live = {"mine": Live(version="live", previous=previous, served=("live", "served"), at=NOW)}
    fleet.jobs = [job("j1", "training", "busy")]
    await pruning(fleet, tmp_path).run()
    assert {one.version for one in fleet.archived} == {*names, "old", "new"} - {"young", "served", "gone"}


async def test_without_a_server_only_what_needs_none_is_pruned(fleet: FakeJobs, tmp_path: Path) -> None:
    (tmp_path / "training_data").mkdir()
    (tmp_path / "training_data" / "day-2020-01-01.jsonl").write_text("{}")
    (tmp_path / "runs" / "j1").mkdir(parents=True)
    names = made(tmp_path, 0, 1)
    fleet.archived = [Archived("mine", "old", LONG_AGO)] * 2
    for failure in (NotSetUp(), TimeoutError(), ZeroDivisionError()):
        fleet.failure = failure
        await pruning(fleet, tmp_path, keep_versions=0, keep_days=0).run()
    assert kept(tmp_path) == set(names)
    assert (tmp_path / "runs" / "j1").exists()
    assert len(fleet.archived) == 2
    assert list((tmp_path / "training_data").iterdir()) == []


async def test_nothing_is_there_yet(fleet: FakeJobs, tmp_path: Path) -> None:
    await pruning(fleet, tmp_path).run()
    assert kept(tmp_path) == set()


@asynccontextmanager
async def connection(url: str) -> AsyncIterator[Client]:
    async with await nats.connect(url) as nc:
        yield nc


async def test_on_a_real_server_what_the_fleet_serves_stays(nats_url: str, tmp_path: Path) -> None:
    first, last = made(tmp_path, 0, 1)
    settings = Settings(data_dir=tmp_path, finetune={"keep_versions": 0, "keep_days": 0})
    async with connection(nats_url) as nc:
        await setup.create(nc)
        checkpoints = Checkpoints(lambda: connection(nats_url), settings.checkpoints_dir)
        for version in (first, last):
            await checkpoints.publish("mine", version)
        live = LiveVersions(nc)
        await live.change("mine", lambda _: Live(version=first, served=(first, last), at=NOW))
        await Pruning(settings, JobStore(nc), live, checkpoints).run()
        assert [one.version for one in await checkpoints.list()] == [first]
        assert kept(tmp_path) == {first, last}  # this worker has yet to follow
        serve(settings.checkpoints_dir, "mine", first)
        await Pruning(settings, JobStore(nc), live, checkpoints).run()
        assert [one.version for one in await checkpoints.list()] == [first]
    assert kept(tmp_path) == {first}
