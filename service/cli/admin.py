"""What is typed below `mlbus admin`: what is done once, beside a NATS server."""

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, NatsUrl, RoleName, Timeout

DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="The embedded server's folder, with the passwords; absent: a password's variable, else var.",
        show_default=False,
    ),
]

admin_app = typer.Typer(help="Set up the NATS server and who may use it.", no_args_is_help=True)


@admin_app.command()
def init(as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Make the streams and buckets that fine-tuning needs, or bring them up to date. An embedded run does so itself.

    Connects as NATS_USER and NATS_PASSWORD, or another identity of the nats command, say.
    """
    from ..jobs.setup import create
    from .ask import Connection, ask
    from .output import out, print_json

    done = ask(Connection(nats_url, timeout), lambda nc: create(nc, timeout))
    if as_json:
        print_json({"done": done})
    else:
        out.print("\n".join(done) or "everything is there already", markup=False)


@admin_app.command()
def user(
    name: Annotated[str, typer.Argument(help="Its name.", metavar="NAME", show_default=False)],
    role: Annotated[RoleName, typer.Option(help="What it may do.")] = "client",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Print the entry of nats-server.conf for a user of its own, and keep a password for it.

    Nobody else can listen where its answers come to.
    """
    from .admin_user import print_user

    print_user(name, role, data_dir, as_json=as_json)


@admin_app.command()
def context(
    user: Annotated[
        str,
        typer.Argument(
            help="client, worker, admin or system of nats-server.conf, or a user.", metavar="USER", show_default=False
        ),
    ],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Its name.", show_default="mlbus-USER")] = None,
    select: Annotated[bool, typer.Option("--select", help="Make it the one that counts where none is named.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace another context of that name.")] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
) -> None:
    """Write a context of the nats command for a role, or for a user that `mlbus admin user` made.

    It holds url, user, password and the user's inbox prefix, in ~/.config/nats/context, readable by you alone.
    """
    from .admin_context import write

    write(user, name, nats_url, data_dir, select=select, force=force, as_json=as_json)
