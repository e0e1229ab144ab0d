"""`mlbus jobs`: what can be typed below it. What a sub-command does is in its own module, imported when it runs."""

from typing import Annotated, Literal, TypeAlias

import typer

from .options import Json, NatsUrl, Timeout
from .subcommands import require_none_given

StateName: TypeAlias = Literal[
    "queued",
    "collecting",
    "training",
    "verifying",
    "swapping",
    "done",
    "failed",
    "cancelled",
    "rejected",
    "skipped",
]

jobs_app = typer.Typer(
    help="Trainings: those that wait, go on or are over. Alone: the list, which is the administrator's.",
    invoke_without_command=True,
)

JobId = Annotated[str, typer.Argument(metavar="ID", help="As `mlbus finetune` and the list tell it.")]
State = Annotated[StateName | None, typer.Option(help="Only jobs in this state.")]
ModelId = Annotated[str | None, typer.Option("--model", metavar="ID", help="Only jobs for this model.")]
Limit = Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="How many, the newest ones.")]


@jobs_app.callback()
def jobs(
    context: typer.Context,
    state: State = None,
    model: ModelId = None,
    limit: Limit = 20,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
) -> None:
    """Show all jobs, newest first, as the administrator. Or one of these:"""
    if context.invoked_subcommand is None:
        show_list(state, model, limit, as_json, nats_url, timeout)
    else:
        require_none_given(context)


@jobs_app.command("list")
def show_list(
    state: State = None,
    model: ModelId = None,
    limit: Limit = 20,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
) -> None:
    """Show all jobs, newest first, as the administrator."""
    from .ask import Connection
    from .jobs_remote import print_jobs

    print_jobs(state, model, limit, Connection(nats_url, timeout), as_json=as_json)


@jobs_app.command()
def get(job_id: JobId, as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Show all that is known of a job."""
    from .ask import Connection
    from .jobs_remote import print_job

    print_job(job_id, Connection(nats_url, timeout), as_json=as_json)


@jobs_app.command()
def watch(job_id: JobId, as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Show how a job goes on, until it is over. Exit code 1 unless it is done; Ctrl-C leaves it running."""
    from .ask import Connection
    from .job_progress import watch_job

    raise typer.Exit(watch_job(job_id, Connection(nats_url, timeout), as_json=as_json))


@jobs_app.command()
def cancel(job_id: JobId, as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Have a job end; the model goes on serving as it does."""
    from .ask import Connection
    from .jobs_remote import cancel_job

    cancel_job(job_id, Connection(nats_url, timeout), as_json=as_json)
