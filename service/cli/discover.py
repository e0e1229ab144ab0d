"""`mlbus ping` and `mlbus schema`: which workers answer, and what they may be asked."""

from typing import Annotated, Any

import typer
from rich.table import Table

from subjects.client.discovery import Answer, ask_workers
from subjects.errors import Unavailable

from .ask import NO_WORKER, STALL_S, Connection, ask, ask_worker
from .options import Json, NatsUrl, Timeout
from .output import out, print_json


def ping(as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Show the workers that answer, what they serve and how fast. Exit code 1 when there is none."""
    connection = Connection(nats_url, timeout)
    answers = ask(connection, lambda nc: ask_workers(nc, "PING", connection.timeout_s, STALL_S))
    if not answers:
        raise Unavailable(NO_WORKER)
    workers = [_worker(answer) for answer in answers]
    if as_json:
        print_json(workers)
        return
    table = Table("worker", "version", "models", "ms", box=None, pad_edge=False)
    for worker in workers:
        table.add_row(worker["id"], worker["version"], ", ".join(worker["models"]), f"{worker['ms']:.1f}")
    out.print(table)


def _worker(answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.body.get("id", ""),
        "version": answer.body.get("version", ""),
        "models": loaded_models(answer),
        "default_model": (answer.body.get("metadata") or {}).get("default_model"),
        "ms": round(answer.ms, 3),
    }


def loaded_models(answer: Answer) -> list[str]:
    """Ids of the models that the worker has loaded."""
    named = (answer.body.get("metadata") or {}).get("models", "")
    return [model for model in named.split(",") if model]


def schema(
    subject: Annotated[
        str | None, typer.Argument(metavar="SUBJECT", help="Such as ml.embed; absent: all.", show_default=False)
    ] = None,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
) -> None:
    """Print the JSON Schemas of the request and the reply on a subject, by subject."""
    reply = ask_worker(Connection(nats_url, timeout), lambda ml: ml.schema(subject))
    print_json(reply.model_dump()["schemas"])
