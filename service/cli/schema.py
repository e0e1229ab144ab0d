"""`mlbus schema`: what requests and replies hold, as workers tell it."""

from typing import Annotated

import typer

from .options import NatsUrl, Timeout


def schema(
    subject: Annotated[
        str | None, typer.Argument(metavar="SUBJECT", help="Such as ml.embed; absent: all.", show_default=False)
    ] = None,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
) -> None:
    """Print the JSON Schemas of the request and the reply on a subject, by subject."""
    from subjects.client import MLClient

    from .ask import Connection, ask
    from .output import print_json

    connection = Connection(nats_url, timeout)
    reply = ask(connection, lambda nc: MLClient(nc, timeout_s=timeout).schema(subject))
    print_json(reply.model_dump()["schemas"])
