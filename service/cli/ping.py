"""`mlbus ping`: which workers answer."""

from typing import Any

from rich.table import Table

from subjects.client.discovery import Answer, ask_workers
from subjects.errors import Unavailable

from .ask import STALL_S, Connection, ask
from .output import out, print_json


def print_workers(connection: Connection, *, as_json: bool) -> None:
    """Print every worker that answers $SRV.PING. Raises Unavailable when none does, BusError."""
    answers = ask(connection, lambda nc: ask_workers(nc, "PING", connection.timeout_s, STALL_S))
    if not answers:
        raise Unavailable("no worker answers on this NATS server; start one with `mlbus serve`")
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
