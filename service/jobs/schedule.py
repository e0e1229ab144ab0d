"""The schedule of the nightly run: its times, read as cron reads them, and its jobs. Pure functions."""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger

from models.catalogue import Catalogue
from models.errors import UnknownModel
from models.training.errors import PathRefused
from subjects import codec
from subjects.errors import MLError
from subjects.finetune import FinetuneOptions, FinetuneRequest

from ..settings import BadSettings, Settings
from ..settings.finetuning import NightlySettings
from .submission import folder_below

MAX_GRACE_S = 86_400
"""A day: the ids of jobs contain their day."""
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_SOME_DAYS = re.compile(r"(?:\*|(?P<first>[a-z]+|[0-7])(?:-(?P<last>[a-z]+|[0-7]))?)(?:/(?P<step>[1-7]))?")
_ANY_TIME = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Schedule:
    """trigger: its times. grace: how late a worker may submit. All times have a time zone."""

    trigger: CronTrigger
    grace: timedelta
    paths: tuple[Path, ...]
    models: tuple[str, ...]
    options: FinetuneOptions

    @property
    def zone(self) -> tzinfo:
        """The time zone of its days."""
        zone: tzinfo = self.trigger.timezone
        return zone

    def next_run(self, now: datetime) -> datetime:
        """The first time from `now` on."""
        return _first(self.trigger, now)

    def last_run(self, now: datetime) -> datetime | None:
        """The last time up to `now`, if it is within the grace."""
        now = now.astimezone(UTC)  # in local time an hour can come twice
        last, at = None, self.next_run(now - self.grace).astimezone(UTC)
        while at <= now:
            last, at = at, self.next_run(at + timedelta(seconds=1)).astimezone(UTC)
        return last

    def requests(self, at: datetime) -> list[FinetuneRequest]:
        """A job for each model and path. Their names are the same on every worker.

        The submission makes an unguessable id of each, also the same on every worker.
        """
        day = at.astimezone(self.zone).date()
        return [
            FinetuneRequest(id=job_id, model=model, path=str(path), options=self.options)
            for model in self.models
            for job_id, path in zip(self._ids(day, model), self.paths, strict=True)
        ]

    def _ids(self, day: date, model: str) -> list[str]:
        one = f"nightly-{day}-{model}"
        return [one] if len(self.paths) == 1 else [f"{one}-{number}" for number, _ in enumerate(self.paths, 1)]


def next_run(settings: NightlySettings, now: datetime) -> datetime | None:
    """The next time from `now` on, which has a time zone; None for never. Raises BadSettings."""
    return _first(_trigger(settings), now) if settings.paths else None


def schedule_of(settings: Settings, catalogue: Catalogue, default_model: str) -> Schedule | None:
    """The schedule of the settings; None if there are no paths, or the worker takes no jobs.

    Whether the paths exist is checked only at their time: a missing one must not keep a worker from serving. Raises
    BadSettings, which names the setting.
    """
    nightly = settings.finetune.nightly
    if not (nightly.paths and settings.finetune.enabled):
        return None
    if nightly.misfire_grace_s > MAX_GRACE_S:
        raise _bad("misfire_grace_s", f"it is at most {MAX_GRACE_S}, a day")
    return Schedule(
        _trigger(nightly),
        timedelta(seconds=nightly.misfire_grace_s),
        _paths(nightly.paths, settings.finetune.roots),
        tuple(dict.fromkeys(_checked(model, catalogue) for model in nightly.models or (default_model,))),
        _options(nightly),
    )


def _bad(setting: str, reason: str) -> BadSettings:
    return BadSettings(f"finetune.nightly.{setting}: {reason}")


def _paths(paths: tuple[Path, ...], roots: tuple[Path, ...]) -> tuple[Path, ...]:
    try:
        return tuple(dict.fromkeys(folder_below(str(path), roots) for path in paths))
    except PathRefused as error:
        raise _bad("paths", str(error)) from None


def _checked(model: str, catalogue: Catalogue) -> str:
    try:
        entry = catalogue.get(model)
    except UnknownModel as error:
        raise _bad("models", str(error)) from None
    if entry.kind != "embedding":
        raise _bad("models", f"{model} generates text; only embedding models are trained here")
    return model


def _options(nightly: NightlySettings) -> FinetuneOptions:
    try:
        return codec.validate(nightly.options, FinetuneOptions)
    except MLError as error:
        raise _bad("options", error.message) from None


def _trigger(nightly: NightlySettings) -> CronTrigger:
    fields = nightly.cron.lower().split()
    if len(fields) != 5:
        raise _bad("cron", f"{nightly.cron!r} is not five fields: minute, hour, day, month, weekday")
    if "*" not in (fields[2], fields[4]):  # cron combines them by "or", APScheduler by "and"
        raise _bad("cron", f"{nightly.cron!r} names days of the month and of the week; leave one of the two at *")
    zone = _zone(nightly.timezone)
    try:
        trigger = CronTrigger.from_crontab(" ".join([*fields[:4], _weekdays(fields[4])]), timezone=zone)
    except ValueError as error:
        raise _bad("cron", f"{nightly.cron!r}: {error}") from None
    if trigger.get_next_fire_time(None, _ANY_TIME) is None:
        raise _bad("cron", f"{nightly.cron!r} names a day that never comes")
    return trigger


def _first(trigger: CronTrigger, now: datetime) -> datetime:
    """The next time, which our triggers always have."""
    found: datetime = trigger.get_next_fire_time(None, now)
    return found


def _zone(name: str | None) -> tzinfo:
    try:
        zone: tzinfo = CronTrigger().timezone if name is None else ZoneInfo(name)  # the default is the machine's
    except (KeyError, ValueError, OSError) as error:
        unknown = "the machine's own is not known; name one" if name is None else f"{name!r} is not known"
        raise _bad("timezone", f"{unknown}, such as Europe/Berlin ({error})") from None
    return zone


def _weekdays(field: str) -> str:
    """A cron field of weekdays, with names for numbers: cron counts from Sunday, APScheduler from Monday.

    Raises ValueError.
    """
    if field == "*":
        return field
    days: set[int] = set()
    for part in field.split(","):
        match = _SOME_DAYS.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no weekday, nor some of them")
        one = match["first"] if not match["step"] else None
        first, last = _day(match["first"] or "sun"), _day(match["last"] or one or "sat")
        days.update(range(first, last + 1 if first <= last else last + 8, int(match["step"] or 1)))
    return ",".join(_DAYS[day % 7] for day in sorted(days))


def _day(name: str) -> int:
    """0 to 7; both 0 and 7 are Sunday."""
    if name.isdigit():
        return int(name)
    if name not in _DAYS:
        raise ValueError(f"{name!r} is no weekday")
    return _DAYS.index(name)
