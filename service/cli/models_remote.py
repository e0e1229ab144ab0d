"""`mlbus models load|unload|reload|recommended`: asked of workers over NATS, each of them by its id."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from nats.aio.client import Client
from rich.table import Table

from subjects.client import MLClient
from subjects.client.discovery import ask_workers
from subjects.client.models import ModelsClient
from subjects.errors import MLError, NotFound, Unavailable
from subjects.models import LoadedModel, ModelsChangeReply
from subjects.names import Use

from .ask import STALL_S, Connection, ask
from .output import err, out, print_json

Change = Callable[[ModelsClient, str], Awaitable[ModelsChangeReply]]
NO_WORKER = "no worker answers on this NATS server; start one with `mlbus serve`"


def change_workers(change: Change, worker: str | None, connection: Connection, *, as_json: bool) -> None:
    """Have one worker, or each, change what it keeps in memory; print what it keeps then.

    change: asks one worker, by its id. Raises the first error that a worker answers with, once all have answered. That
    a worker lacks what another has unloaded is no failure.
    """
    _print_outcome(*ask(connection, lambda nc: _change(nc, change, worker, connection.timeout_s)), as_json=as_json)


def reload_everywhere(model: str, version: str | None, connection: Connection, *, as_json: bool) -> None:
    """Have all workers swap at once, so that a version that is named is the live one; print what they serve then.

    Raises the first error that a worker answers with.
    """

    async def reloaded(nc: Client) -> tuple[list[ModelsChangeReply], list[MLError]]:
        workers = await _workers(nc, connection.timeout_s)
        models = MLClient(nc, timeout_s=connection.timeout_s, retries=0).models
        return _parted(await models.reload_all(model, len(workers), version=version))

    _print_outcome(*ask(connection, reloaded), as_json=as_json)


def _print_outcome(replies: Sequence[ModelsChangeReply], errors: Sequence[MLError], *, as_json: bool) -> None:
    if as_json:
        print_json([reply.model_dump(exclude_none=True) for reply in replies])
    elif replies:
        _show(replies)
    unloaded = any(reply.unloaded for reply in replies)
    failures = [error for error in errors if not (unloaded and isinstance(error, NotFound))]
    for error in errors:
        if error not in failures[:1]:
            err.print(str(error), markup=False)
    if failures:
        raise failures[0]


async def _change(
    nc: Client, change: Change, worker: str | None, timeout_s: float
) -> tuple[list[ModelsChangeReply], list[MLError]]:
    workers = [worker] if worker else await _workers(nc, timeout_s)
    models = MLClient(nc, timeout_s=timeout_s, retries=0).models
    return _parted(await asyncio.gather(*(_asked(change, models, name) for name in workers)))


async def _workers(nc: Client, timeout_s: float) -> list[str]:
    """The ids of all. Raises Unavailable where there is none."""
    workers = [str(answer.body["id"]) for answer in await ask_workers(nc, "PING", timeout_s, STALL_S)]
    if not workers:
        raise Unavailable(NO_WORKER)
    return workers


def _parted(results: Sequence[ModelsChangeReply | MLError]) -> tuple[list[ModelsChangeReply], list[MLError]]:
    replies = [result for result in results if isinstance(result, ModelsChangeReply)]
    return replies, [result for result in results if isinstance(result, MLError)]


async def _asked(change: Change, models: ModelsClient, worker: str) -> ModelsChangeReply | MLError:
    """One worker's answer; an error names the worker."""
    try:
        return await change(models, worker)
    except MLError as error:
        return type(error)(f"worker {worker}: {error.message}")


def _show(replies: Sequence[ModelsChangeReply]) -> None:
    table = Table("worker", "model", "", "version", "device", "memory", "pinned", box=None, pad_edge=False)
    for reply in replies:
        if reply.loaded:
            table.add_row(reply.worker, reply.model, "loaded", *_facts(reply.loaded))
        elif reply.unloaded:
            table.add_row(reply.worker, reply.model, "unloaded", *_facts(reply.unloaded))
    out.print(table)
    for reply in replies:
        for note in reply.loaded.notes if reply.loaded else ():
            err.print(f"{reply.worker}: {reply.model} {note}", markup=False)


def _facts(loaded: LoadedModel) -> tuple[str, ...]:
    return loaded.version, loaded.device, f"{loaded.memory_bytes / 1e6:,.0f} MB", "yes" if loaded.pinned else "no"


def print_recommended(use: Use | None, connection: Connection, *, as_json: bool) -> None:
    """Print the model for each use, and what to take where it is not on the worker's machine. Raises MLError."""
    reply = ask(connection, lambda nc: MLClient(nc, timeout_s=connection.timeout_s).models.recommended(use))
    if as_json:
        print_json(reply.model_dump())
        return
    table = Table("for", "recommended", "here", "use now", box=None, pad_edge=False)
    for one in reply.recommended:
        table.add_row(one.use, one.recommended, "yes" if one.present else "no", one.model or "-")
    out.print(table)
