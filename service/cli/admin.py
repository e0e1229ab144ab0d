"""What is typed below `mlbus admin`: what the administrator of a NATS server does for mlbus, once."""

import typer

from .options import Json, NatsUrl, Timeout

admin_app = typer.Typer(help="Set up the NATS server, as its administrator.", no_args_is_help=True)


@admin_app.callback()
def admin() -> None:
    """A group, so that its one command has a name."""


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
