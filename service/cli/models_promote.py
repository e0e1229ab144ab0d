"""`mlbus models promote`: what can be typed, and what it does, whose imports wait until it runs."""

from typing import Annotated

import typer

from .options import Json, NatsUrl, Timeout


def promote(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Id of the catalogue.")] = None,
    version: Annotated[str | None, typer.Argument(metavar="VERSION", help="One that has passed.")] = None,
    job: Annotated[
        str | None, typer.Option(metavar="ID", help="What comes of this job instead, also while it still runs.")
    ] = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 300.0,
) -> None:
    """Have all workers serve a version that has passed, prove it there, or go back to the one before.

    Ctrl-C, or the end of the time, has the version before serve again.
    """
    from subjects.client import MLClient

    from .ask import Connection, ask
    from .output import err, out, print_json

    reply = ask(
        Connection(nats_url, timeout),
        lambda nc: MLClient(nc, timeout_s=timeout).models.promote(model, version, job=job),
    )
    if as_json:
        print_json(reply.model_dump(exclude_none=True))
    elif reply.live:
        out.print(f"{reply.model} {reply.version} serves now", markup=False)
    else:
        out.print(f"what comes of job {reply.job} will serve once it has passed", markup=False)
    for note in reply.notes:
        err.print(note, markup=False)
