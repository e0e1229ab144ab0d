"""The training that begins by itself: when, without any clock; for what; and that a fleet asks for it once."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalogue import load_catalogue
from models.training.errors import PathRefused
from service.jobs.bucket import NotSetUp
from service.jobs.nightly import nightly
from service.jobs.schedule import Schedule, next_run, schedule_of
from service.settings import BadSettings, Settings
from service.settings.finetuning import NightlySettings
from subjects.errors import Unavailable
from subjects.finetune import FinetuneReply, FinetuneRequest

BERLIN = ZoneInfo("Europe/Berlin")
CATALOGUE = load_catalogue({name: {"kind": "embedding", "folder": name} for name in ("a", "a-1")})
WARSAW_NOON = datetime(2026, 6, 1, 12, 0, tzinfo=ZoneInfo("Europe/Warsaw"))


def settings_of(**fields: Any) -> Settings:
    asked = {"timezone": "Europe/Berlin", "paths": (Path("code"),), "models": ("a",), **fields}
    return Settings(finetune={"nightly": asked})


def schedule(**fields: Any) -> Schedule:
    made = schedule_of(settings_of(**fields), CATALOGUE, "minilm")
    assert made is not None
    return made


def runs(cron: str, after: datetime, count: int, timezone: str = "Europe/Berlin") -> list[str]:
    """The next times, in UTC."""
    settings, found = NightlySettings(cron=cron, timezone=timezone, paths=(Path("code"),)), list[str]()
    at = after
    for _ in range(count):
        run = next_run(settings, at)
        assert run is not None
        found.append(f"{run.astimezone(UTC):%m-%d %H:%M}")
        at = run.astimezone(UTC) + timedelta(seconds=1)
    return found


def ids(made: Schedule, at: datetime) -> list[str | None]:
    return [request.id for request in made.requests(at)]


# When


def test_it_is_two_in_the_night_where_the_settings_say() -> None:
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC)
    assert runs("0 2 * * *", noon, 2) == ["06-02 00:00", "06-03 00:00"]
    assert runs("0 2 * * *", noon, 2, "America/New_York") == ["06-02 06:00", "06-03 06:00"]
    assert runs("0 2 * * *", noon, 1, "Asia/Kathmandu") == ["06-01 20:15"]


def test_the_moment_itself_counts() -> None:
    at = datetime(2026, 6, 1, 2, tzinfo=BERLIN)
    assert next_run(settings_of().finetune.nightly, at) == at


def test_without_paths_there_is_none() -> None:
    assert next_run(NightlySettings(), WARSAW_NOON) is None
    assert schedule_of(Settings(), CATALOGUE, "minilm") is None


def test_a_worker_that_takes_no_jobs_asks_for_none() -> None:
    asked = settings_of().finetune.model_copy(update={"enabled": False})
    assert schedule_of(Settings(finetune=asked), CATALOGUE, "minilm") is None


def test_the_hour_that_summer_time_skips_is_made_up_for_once() -> None:
    before = datetime(2026, 3, 28, 12, tzinfo=UTC)
    assert runs("30 2 * * *", before, 3) == ["03-29 01:30", "03-30 00:30", "03-31 00:30"]


def test_the_hour_that_winter_time_repeats_is_one_day_and_one_job() -> None:
    before = datetime(2026, 10, 24, 12, tzinfo=UTC)
    assert runs("30 2 * * *", before, 3) == ["10-25 00:30", "10-25 01:30", "10-26 01:30"]
    made = schedule(cron="30 2 * * *")
    both = [datetime(2026, 10, 25, hour, 30, tzinfo=UTC) for hour in (0, 1)]
    assert [ids(made, at) for at in both] == [["nightly-2026-10-25-a"]] * 2
    assert [made.last_run(at + timedelta(minutes=10)) for at in both] == both


@pytest.mark.parametrize(
    ("field", "days"),
    [
        ("0", "Sun"),
        ("7", "Sun"),
        ("1-5", "Mon Tue Wed Thu Fri"),
        ("0-2", "Mon Tue Sun"),
        ("5-7", "Fri Sat Sun"),
        ("*/2", "Tue Thu Sat Sun"),
        ("1-5/2", "Mon Wed Fri"),
        ("fri-mon", "Mon Fri Sat Sun"),
        ("MON,3", "Mon Wed"),
    ],
)
def test_weekdays_are_those_of_cron(field: str, days: str) -> None:
    monday = datetime(2026, 6, 1, tzinfo=BERLIN)
    found = runs(f"0 12 * * {field}", monday, len(days.split()))
    assert [f"{datetime.strptime(f'2026-{run}', '%Y-%m-%d %H:%M'):%a}" for run in found] == days.split()


@given(
    st.integers(0, 59),
    st.integers(0, 23),
    st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC)),
)
def test_the_next_time_is_as_the_cron_fields_say_and_never_far(minute: int, hour: int, now: datetime) -> None:
    settings = NightlySettings(cron=f"{minute} {hour} * * *", timezone="Europe/Berlin", paths=(Path("code"),))
    run = next_run(settings, now)
    assert run is not None
    assert timedelta(0) <= run.astimezone(UTC) - now <= timedelta(hours=25)
    assert (run.hour, run.minute) == (hour, minute)


# Late


def test_a_worker_may_be_late_for_as_long_as_it_is_allowed() -> None:
    made = schedule(misfire_grace_s=3600)
    two = datetime(2026, 6, 1, 2, tzinfo=BERLIN)
    for late in (timedelta(0), timedelta(minutes=10), timedelta(hours=1)):
        assert made.last_run(two + late) == two
    assert made.last_run(two + timedelta(hours=1, seconds=1)) is None
    assert made.last_run(two - timedelta(seconds=1)) is None


def test_of_several_that_were_missed_the_last_one_counts() -> None:
    made = schedule(cron="*/10 2 * * *", misfire_grace_s=3600)
    assert made.last_run(datetime(2026, 6, 1, 2, 45, tzinfo=BERLIN)) == datetime(2026, 6, 1, 2, 40, tzinfo=BERLIN)


def test_late_past_midnight_it_is_still_the_job_of_the_day_before() -> None:
    made = schedule(cron="30 23 * * *")
    late = made.last_run(datetime(2026, 6, 2, 0, 15, tzinfo=BERLIN))
    assert late is not None
    assert ids(made, late) == ["nightly-2026-06-01-a"]


# What


def test_each_model_is_trained_on_each_path() -> None:
    made = schedule(models=("a", "a-1"), paths=(Path("one"), Path("two")), options={"epochs": 2})
    requests = made.requests(datetime(2026, 6, 1, 0, tzinfo=UTC))
    assert [request.id for request in requests] == [
        "nightly-2026-06-01-a-1",
        "nightly-2026-06-01-a-2",
        "nightly-2026-06-01-a-1-1",
        "nightly-2026-06-01-a-1-2",
    ]
    assert [request.model for request in requests] == ["a", "a", "a-1", "a-1"]
    assert [Path(str(request.path)).name for request in requests] == ["one", "two"] * 2
    assert all(Path(str(request.path)).is_absolute() and request.options.epochs == 2 for request in requests)


def test_the_default_model_is_trained_where_none_is_named() -> None:
    assert ids(schedule(models=()), WARSAW_NOON) == ["nightly-2026-06-01-minilm"]


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("cron", "0 2 * *", "is not five fields"),
        ("cron", "@daily", "is not five fields"),
        ("cron", "61 2 * * *", "61"),
        ("cron", "0 2 * * someday", "'someday' is no weekday"),
        ("cron", "0 2 * * 8", "'8' is no weekday"),
        ("cron", "0 2 1 * 1", "leave one of the two at"),
        ("cron", "0 2 30 2 *", "a day that never comes"),
        ("timezone", "Europe/Atlantis", "is not known"),
        ("timezone", "", "is not known"),
        ("timezone", "../Berlin", "is not known"),
        ("timezone", "Europe", "is not known"),
        ("misfire_grace_s", 10**12, "at most 86400"),
        ("paths", (Path("/"),), "/ cannot be trained on: it is not below one of the worker's finetune.roots"),
        ("paths", (Path("code"), Path("../other")), "not below one of the worker's finetune.roots"),
        ("models", ("nope",), "unknown model 'nope'"),
        ("models", ("tiny_coder",), "only embedding models"),
        ("options", {"epochs": 0}, "field 'epochs'"),
        ("options", {"epoch": 1}, "unknown field 'epoch'"),
        ("options", {"learning_rate": float("nan")}, "field 'learning_rate'"),
    ],
)
def test_what_is_wrong_is_refused_by_the_name_of_its_setting(setting: str, value: Any, told: str) -> None:
    with pytest.raises(BadSettings, match=rf"^finetune\.nightly\.{setting}: .*{told}"):
        schedule(**{setting: value})


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(BadSettings, match=r"finetune\.nightly\.paths"):
        schedule(paths=(tmp_path / "loop",))


# Asking


class FakeSubmission:
    """Jobs by id, of a whole fleet. failures: what is raised before one is taken. asked: all that was asked for."""

    def __init__(self, *failures: Exception) -> None:
        self.jobs: dict[str, FinetuneRequest] = {}
        self.asked: list[str] = []
        self.failures = list(failures)
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    async def submit(self, request: FinetuneRequest, origin: str = "request") -> FinetuneReply:
        assert (origin, type(request.id)) == ("nightly", str)
        self.asked.append(str(request.id))
        self.entered.set()
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        known = str(request.id) in self.jobs
        self.jobs[str(request.id)] = request
        return FinetuneReply(job=str(request.id), duplicate=known)


def counted(times: int) -> tuple[Callable[[], Awaitable[None]], asyncio.Event]:
    """A function, and an event that is set once it was called so many times."""
    left, reached = iter(range(times - 1, -1, -1)), asyncio.Event()

    async def count() -> None:
        if next(left) == 0:
            reached.set()

    return count, reached


def due(**fields: Any) -> Schedule:
    """A schedule whose time came less than a minute ago, on days that cannot end while a test runs."""
    return schedule(**{"cron": "* * * * *", "misfire_grace_s": 3600, **fields})


async def test_a_fleet_asks_at_once_and_gets_one_job() -> None:
    submission = FakeSubmission()
    afterwards, all_done = counted(3)
    made = due()
    async with AsyncExitStack() as fleet, asyncio.timeout(20):
        for _ in range(3):
            await fleet.enter_async_context(nightly(made, submission, afterwards))
        await all_done.wait()
    assert len(submission.asked) == 3
    assert len(submission.jobs) == 1


async def test_one_that_is_refused_costs_the_others_nothing(tmp_path: Path) -> None:
    submission = FakeSubmission(PathRefused("x", "it is gone"), NotSetUp(), ZeroDivisionError())
    afterwards, done = counted(1)
    paths = tuple(Path(name) for name in ("1", "2", "3", "4"))
    async with nightly(due(paths=paths), submission, afterwards), asyncio.timeout(20):
        await done.wait()
    (job,) = submission.jobs
    assert job.endswith("-a-4")


async def test_a_server_that_is_away_for_a_while_costs_no_night() -> None:
    submission = FakeSubmission(Unavailable("no"), TimeoutError())
    afterwards, done = counted(1)
    async with nightly(due(), submission, afterwards, retry_s=0), asyncio.timeout(20):
        await done.wait()
    assert len(submission.jobs) == 1
    assert len(submission.asked) == 3


async def test_its_end_ends_what_it_asks_for() -> None:
    submission = FakeSubmission()
    submission.gate.clear()
    afterwards, done = counted(1)
    async with nightly(due(), submission, afterwards), asyncio.timeout(20):
        await submission.entered.wait()
    submission.gate.set()
    assert not submission.jobs
    assert not done.is_set()
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


async def test_it_waits_for_its_time() -> None:
    submission = FakeSubmission()
    afterwards, _ = counted(1)
    far = datetime.now(UTC) + timedelta(hours=12)
    made = schedule(cron=f"0 {far.hour} * * *", timezone="UTC", misfire_grace_s=60)
    async with nightly(made, submission, afterwards):
        await asyncio.sleep(0)
    assert submission.asked == []


async def test_without_a_schedule_nothing_happens() -> None:
    afterwards, _ = counted(1)
    async with nightly(None, FakeSubmission(), afterwards):
        assert len(asyncio.all_tasks()) == 1
