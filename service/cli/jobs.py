"""`mlbus jobs`: the states of jobs, from any worker."""

from contextlib import aclosing, closing
from datetime import timedelta
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from subjects import codec, names
from subjects.client import MLClient
from subjects.errors import Internal
from subjects.jobs import MAX_LISTED, TERMINAL, Job, JobsListRequest

from .ask import Connection, ask_worker
from .options import Json, NatsUrl, Timeout, options_of, require_none_given
from .output import err, out, print_json, shortened, table_of

INTERRUPTED = 130
_GOOD = ("done", "skipped")

jobs_app = typer.Typer(
    help="Trainings: those that wait, go on or are over. Alone: the list, which is the administrator's.",
    invoke_without_command=True,
)

JobId = Annotated[str, typer.Argument(metavar="ID", help="As `mlbus finetune` and the list tell it.")]


@jobs_app.command("list")
@jobs_app.callback()
@options_of(JobsListRequest, "Options", "state model")
def show_list(
    context: typer.Context,
    limit: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="How many, the newest ones.")] = 20,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
    **options: Any,
) -> None:
    """Show all jobs, newest first, as the administrator."""
    if context.invoked_subcommand is not None:
        require_none_given(context)
        return
    jobs = ask_worker(Connection(nats_url, timeout), lambda ml: _newest(ml, limit, **options))
    if as_json:
        print_json([_fields(job) for job in jobs])
        return
    out.print(table_of(("job", "model", "state", "made", "from", ""), map(_cells, jobs), whole=("job",)))


async def _newest(ml: MLClient, limit: int, **options: Any) -> list[Job]:
    """The newest jobs, at most `limit`, page by page."""
    found: list[Job] = []
    while (left := limit - len(found)) > 0:
        last = found[-1].id if found else None
        page = (await ml.jobs.list(limit=min(left, MAX_LISTED), before=last, **options)).jobs
        found += page
        if len(page) < min(left, MAX_LISTED):
            break
    return found


@jobs_app.command()
def get(job_id: JobId, as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Show all that is known of a job."""
    job = ask_worker(Connection(nats_url, timeout), lambda ml: ml.jobs.get(job_id))
    if as_json:
        print_json(_fields(job))
        return
    out.print(table_of(("", ""), _known(job).items()))
    if job.state in TERMINAL:
        out.print("\n".join(outcome(job)))


@jobs_app.command()
def watch(job_id: JobId, as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Show how a job goes on, until it is over. Exit code 1 unless it is done; Ctrl-C leaves it running."""
    raise typer.Exit(watch_job(job_id, Connection(nats_url, timeout), as_json=as_json))


@jobs_app.command()
def cancel(job_id: JobId, as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Have a job end; the model goes on serving as it does."""
    job = ask_worker(Connection(nats_url, timeout), lambda ml: ml.jobs.cancel(job_id))
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
    """The facts of a job that are known, by name."""
    tries = f"{job.attempt}, on worker {job.worker}" if job.worker else ""
    facts_of_job = {
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
    return {name: value for name, value in facts_of_job.items() if value}


def _time(job: Job) -> str:
    return f"{job.created_at.astimezone():%Y-%m-%d %H:%M}"


def watch_job(job_id: str, connection: Connection, *, as_json: bool) -> int:
    """Show a job until it is over -> exit code: 0 for done and skipped, 1 otherwise, 130 for Ctrl-C.

    as_json: each state as an object on a line of its own. Raises BusError, MLError.
    """
    try:
        job = ask_worker(connection, lambda ml: _watch(ml, job_id, as_json=as_json))
    except KeyboardInterrupt:
        err.print(f"job {job_id} goes on\n{next_steps(job_id)}")
        return INTERRUPTED
    if not as_json:
        out.print("\n".join(outcome(job)))
    return 0 if job.state in _GOOD else 1


def next_steps(job_id: str) -> str:
    """The commands for a job that still runs."""
    return f"follow it:  mlbus jobs watch {job_id}\ncancel it:  mlbus jobs cancel {job_id}"


async def _watch(ml: MLClient, job_id: str, *, as_json: bool) -> Job:
    with closing(_Display()) as display:
        async with aclosing(ml.jobs.watch(job_id)) as states:
            async for job in states:
                if as_json:
                    typer.echo(codec.dumps(job, names.JSON).decode())
                else:
                    display.show(job)
                if job.state in TERMINAL:
                    return job
    raise Internal(f"job {job_id!r} is not over, and nothing more is heard of it")


class _Display:
    """On a terminal one line that changes, elsewhere a line for each new state."""

    def __init__(self) -> None:
        state, facts = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[facts]"))
        columns = SpinnerColumn(), state, BarColumn(), facts
        self._progress = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._task = self._progress.add_task("", total=None, facts="")
        self._shown: tuple[str, str | None] | None = None
        self._notes = 0

    def show(self, job: Job) -> None:
        for note in job.notes[self._notes :]:
            err.print(note)
        self._notes = len(job.notes)
        if err.is_terminal:
            self._progress.start()
            training = job.state == "training"
            self._progress.update(
                self._task,
                description=job.state,
                total=job.steps if training else None,
                completed=(job.step or 0) if training else 0,
                facts=", ".join(facts(job)),
                refresh=True,
            )
        elif job.state not in TERMINAL and self._shown != (job.state, job.reason):
            err.print(": ".join([f"{job.model} {job.state}", *([job.reason] if job.reason else [])]))
        self._shown = job.state, job.reason

    def close(self) -> None:
        self._progress.stop()


def facts(job: Job) -> list[str]:
    """The progress of a job, as far as it is known."""
    known = [job.reason] if job.reason else []
    if job.state != "training":
        return known
    if job.step is not None and job.steps is not None:
        known.append(f"step {job.step} of {job.steps}")
    if job.loss is not None:
        known.append(f"loss {job.loss:.4f}")
    if job.pairs_per_s is not None:
        known.append(f"{job.pairs_per_s:.1f} pairs/s")
    if job.eta_s is not None:
        known.append(f"{timedelta(seconds=round(job.eta_s))} left")
    return known


def outcome(job: Job) -> list[str]:
    """How a job ended, in lines."""
    return [_ending(job), *_gains(job), *_where(job)]


def _ending(job: Job) -> str:
    reason = f": {job.reason}" if job.reason else ""
    match job.state:
        case "done" if job.reason:
            return f"{job.model} {job.version} is {job.reason}"
        case "done":
            return f"{job.model} {job.version} serves now, trained further from {job.parent}"
        case "rejected":
            return f"{job.model} {job.version} was rejected, and {job.parent} goes on serving{reason}"
        case "skipped":
            return f"nothing was trained{reason}"
        case _:
            return f"job {job.id} {'was ' if job.state == 'cancelled' else ''}{job.state}{reason}"


def _gains(job: Job) -> list[str]:
    """Each metric before and after the training."""
    measured = [name.removesuffix("_before") for name in job.metrics if name.endswith("_before")]
    both = [name for name in measured if f"{name}_after" in job.metrics]
    width = max(map(len, both), default=0)
    return [
        f"  {name:<{width}}  {job.metrics[f'{name}_before']:.3f} -> {job.metrics[f'{name}_after']:.3f}" for name in both
    ]


def _where(job: Job) -> list[str]:
    if job.version is None or job.state not in ("done", "rejected"):
        return []
    report = f"checkpoints/{job.model}/{job.version}/report/report.html"
    return [f"report: {report} in the data folder of worker {job.worker}"]
