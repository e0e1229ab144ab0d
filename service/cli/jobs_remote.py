"""`mlbus jobs list|get|cancel`: asked of any worker over NATS."""

from rich.markup import escape
from rich.table import Table

from subjects.client import MLClient
from subjects.jobs import MOST_LISTED, TERMINAL, Job
from subjects.names import JobState

from .ask import Connection, ask
from .job_progress import facts, outcome
from .output import out, print_json, shortened


def print_jobs(state: JobState | None, model: str | None, limit: int, connection: Connection, *, as_json: bool) -> None:
    """Print the newest jobs, newest first. Raises BusError, MLError."""
    jobs = ask(connection, lambda nc: _newest(MLClient(nc, timeout_s=connection.timeout_s), state, model, limit))
    if as_json:
        print_json([_fields(job) for job in jobs])
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("job", "model", "state", "made", "from", ""):
        table.add_column(heading, no_wrap=heading == "job", overflow="fold")
    for job in jobs:
        table.add_row(*map(escape, _cells(job)))
    out.print(table)


async def _newest(ml: MLClient, state: JobState | None, model: str | None, limit: int) -> list[Job]:
    """So many jobs, in as many pages as it takes."""
    found: list[Job] = []
    while (left := limit - len(found)) > 0:
        last = found[-1].id if found else None
        page = (await ml.jobs.list(state, model=model, limit=min(left, MOST_LISTED), before=last)).jobs
        found += page
        if len(page) < min(left, MOST_LISTED):
            break
    return found


def print_job(job_id: str, connection: Connection, *, as_json: bool) -> None:
    """Print a job as it stands. Raises BusError, MLError."""
    job = ask(connection, lambda nc: MLClient(nc, timeout_s=connection.timeout_s).jobs.get(job_id))
    if as_json:
        print_json(_fields(job))
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in _known(job).items():
        table.add_row(name, escape(value))
    out.print(table)
    if job.state in TERMINAL:
        out.print("\n".join(outcome(job)), markup=False)


def cancel_job(job_id: str, connection: Connection, *, as_json: bool) -> None:
    """Have a job end, and print how it stands then. Raises BusError, MLError."""
    job = ask(connection, lambda nc: MLClient(nc, timeout_s=connection.timeout_s).jobs.cancel(job_id))
    if as_json:
        print_json(_fields(job))
    elif job.state == "cancelled":
        out.print(f"job {job.id} is cancelled")
    elif job.state in TERMINAL:
        out.print(f"job {job.id} was over already: {job.state}")
    else:
        out.print(f"job {job.id} ends as soon as its worker hears of it, and is {job.state} until then")


def _fields(job: Job) -> dict[str, object]:
    return job.model_dump(mode="json", exclude_none=True)


def _cells(job: Job) -> tuple[str, ...]:
    last = job.version if job.state == "done" else ", ".join(facts(job))
    return job.id, job.model, job.state, _time(job), shortened(job.source, 32), shortened(last or "", 60)


def _known(job: Job) -> dict[str, str]:
    """What is to be told of a job, by name."""
    tries = f"{job.attempt}, on worker {job.worker}" if job.worker else ""
    told = {
        "job": job.id,
        "model": job.model,
        "trains on": job.source,
        "asked for by": "the nightly run" if job.origin == "nightly" else "a request",
        "made": _time(job),
        "state": f"{job.state}, to be cancelled" if job.cancel_requested and job.state not in TERMINAL else job.state,
        "progress": ", ".join(facts(job)) if job.state not in TERMINAL else "",
        "attempt": tries,
        "notes": "\n".join(job.notes),
    }
    return {name: value for name, value in told.items() if value}


def _time(job: Job) -> str:
    return f"{job.created_at.astimezone():%Y-%m-%d %H:%M}"
