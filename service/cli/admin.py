"""`mlbus admin`: sets up a NATS server: streams and buckets, users, contexts of the nats command."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..bus.contexts import select_context, write_context
from ..bus.credentials import FILE_NAME, ROLES, add_user, inbox_prefix, password, variable
from ..bus.embedded import CONF
from ..bus.settings import NatsSettings
from ..jobs.setup import create
from ..settings import read_settings
from .ask import Connection, ask, silence_logs
from .options import Json, NatsUrl, Timeout
from .output import err, out, print_json

_ASK = "nats --context {name} req ml.embed hello"
_TRY = {
    "worker": "NATS_CONTEXT={name} mlbus serve",
    "gateway": "NATS_CONTEXT={name} mlbus gateway",
    "admin": "nats --context {name} stream ls",
    "system": "nats --context {name} server list",
}

UserRole = Literal["client", "gateway", "admin"]
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
    done = ask(Connection(nats_url, timeout), lambda nc: create(nc, timeout))
    if as_json:
        print_json({"done": done})
    else:
        out.print("\n".join(done) or "everything is there already")


@admin_app.command()
def user(
    name: Annotated[str, typer.Argument(help="Its name.", metavar="NAME", show_default=False)],
    role: Annotated[UserRole, typer.Option(help="What it may do.")] = "client",
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Print the entry of nats-server.conf for a user of its own, and keep a password for it.

    Nobody else can listen where its answers come to.
    """
    file = read_settings(data_dir=data_dir).data_dir / FILE_NAME
    add_user(name, file)
    block = block_of(CONF.read_text("utf-8"), role, name)
    if as_json:
        print_json({"user": name, "role": role, "block": block, "variable": variable(name), "file": str(file)})
        return
    out.print(block)
    where = f"{variable(name)} is in {file}, which an embedded server reads"
    hint = f"Put that among the users of nats-server.conf; {where}. Then: mlbus admin context {name}"
    err.print(hint)


def block_of(conf: str, role: UserRole, name: str) -> str:
    """The entry of a role in nats-server.conf, rewritten for another user."""
    found = re.search(rf"^ *{{ user: {role}, (.*}}$|[^}}]*}} }}$)", conf, re.MULTILINE)
    assert found is not None, f"nats-server.conf has no user {role}"
    block = found[0].replace(f"user: {role},", f"user: {name},").replace(variable(role), variable(name))
    return block.replace(f"{inbox_prefix(role)}.", f"{inbox_prefix(name)}.")


@admin_app.command()
def context(
    user: Annotated[
        str,
        typer.Argument(
            help="client, gateway, worker, admin or system of nats-server.conf, or a user.",
            metavar="USER",
            show_default=False,
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
    silence_logs()
    name = name or f"mlbus-{user}"
    mine = read_settings(data_dir=data_dir, nats_url=nats_url)
    secret = password(user, mine.data_dir / FILE_NAME, {} if data_dir else os.environ)
    own = mine.embedded_nats and "NATS_URL" not in os.environ
    server = mine.nats_url or (f"nats://127.0.0.1:{mine.nats_port}" if own else None)
    settings = NatsSettings.of_user(os.environ, user, secret, server)
    kind = "role" if user in ROLES else "user"
    content = {"description": f"mlbus: the {kind} {user}", **settings.as_context()}
    path = write_context(os.environ, name, content, force=force)
    if select:
        select_context(os.environ, name)
    if as_json:
        print_json({"context": name, "file": str(path), "url": settings.url, "user": user, "selected": select})
        return
    out.print(f"{path}: {user} at {settings.url}")
    out.print(f"Try: {_TRY.get(user, _ASK).format(name=name)}")
