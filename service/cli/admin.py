"""What is typed below `mlbus admin`: what is done once, beside a NATS server."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, NatsUrl, RoleName, Timeout

admin_app = typer.Typer(help="Set up the NATS server and who may use it.", no_args_is_help=True)


@admin_app.command()
def init(as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Make the streams and buckets that fine-tuning needs, or bring them up to date. An embedded run does so itself.

    Connects as NATS_USER and NATS_PASSWORD, or another identity of the nats command, say.
    """
    from ..jobs.streams import create
    from .ask import Connection, ask
    from .output import out, print_json

    done = ask(Connection(nats_url, timeout), lambda nc: create(nc, timeout))
    if as_json:
        print_json({"done": done})
    else:
        out.print("\n".join(done) or "everything is there already", markup=False)


@admin_app.command()
def context(
    role: Annotated[RoleName, typer.Argument(help="A role of nats-server.conf.", metavar="ROLE", show_default=False)],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Its name.", show_default="mlbus-ROLE")] = None,
    select: Annotated[bool, typer.Option("--select", help="Make it the one that counts where none is named.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace another context of that name.")] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="The embedded server's folder, with the password; absent: the variable MLBUS_ROLE_PASSWORD, else var.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
) -> None:
    """Write a context of the nats command for a role: client, worker, admin or system.

    It holds url, user, password and the role's inbox prefix, in ~/.config/nats/context, readable by you alone.
    """
    from .admin_context import write

    write(role, name, nats_url, data_dir, select=select, force=force, as_json=as_json)
