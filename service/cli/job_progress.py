"""A job as it goes on, for a person or a script, and its end in plain words."""

from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from datetime import timedelta

import typer
from nats.aio.client import Client
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from subjects import codec, names
from subjects.client import MLClient
from subjects.errors import Internal
from subjects.jobs import TERMINAL, Job

from .ask import Connection, ask
from .output import err, out

INTERRUPTED = 130
_GOOD = ("done", "skipped")


def watch_job(job_id: str, connection: Connection, *, as_json: bool) -> int:
    """Show a job until it is over -> exit code: 0 for done and skipped, 1 otherwise, 130 for Ctrl-C.

    as_json: each state as an object on a line of its own. Raises BusError, MLError.
    """
    try:
        job = ask(connection, lambda nc: _watch(nc, job_id, connection.timeout_s, as_json=as_json))
    except KeyboardInterrupt:
        err.print(
            f"job {job_id} goes on\nfollow it:  mlbus jobs watch {job_id}\ncancel it:  mlbus jobs cancel {job_id}"
        )
        return INTERRUPTED
    if not as_json:
        out.print("\n".join(outcome(job)), markup=False)
    return 0 if job.state in _GOOD else 1


async def _watch(nc: Client, job_id: str, timeout_s: float, *, as_json: bool) -> Job:
    with _display() as display:
        async with aclosing(MLClient(nc, timeout_s=timeout_s).jobs.watch(job_id)) as states:
            async for job in states:
                if as_json:
                    typer.echo(codec.dumps(job, names.JSON).decode())
                else:
                    display.show(job)
                if job.state in TERMINAL:
                    return job
    raise Internal(f"job {job_id!r} is not over, and nothing more is heard of it")


class _Display:
    """One line that changes where a person looks on, else a line whenever the state changes."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, facts="")
        self._told: tuple[str, str | None] | None = None
        self._notes = 0

    def show(self, job: Job) -> None:
        for note in job.notes[self._notes :]:
            err.print(note, markup=False)
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
        elif job.state not in TERMINAL and self._told != (job.state, job.reason):
            err.print(": ".join([f"{job.model} {job.state}", *([job.reason] if job.reason else [])]), markup=False)
        self._told = job.state, job.reason


@contextmanager
def _display() -> Iterator[_Display]:
    said = (TextColumn(f"{{task.{field}}}", markup=False) for field in ("description", "fields[facts]"))
    columns = SpinnerColumn(), next(said), BarColumn(), next(said)
    progress = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    try:
        yield _Display(progress)
    finally:
        progress.stop()


def facts(job: Job) -> list[str]:
    """What is known of how far it is."""
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
    """Each measure before and after."""
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
