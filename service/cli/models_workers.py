"""`mlbus models load`, `unload`, `reload`, `promote` and `recommended`: requests to workers."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import typer
from nats.aio.client import Client
from rich.table import Table

from subjects.client import MLClient
from subjects.client.discovery import ask_workers
from subjects.client.models import ModelsClient
from subjects.errors import MLError, NotFound, Unavailable
from subjects.models import LoadedModel, ModelsChangeReply, ModelsLoadRequest, ModelsUnloadRequest
from subjects.names import Use

from .ask import NO_WORKER, STALL_S, Connection, ask, ask_worker
from .options import Json, ModelId, NatsUrl, Timeout, options_of
from .output import err, out, print_json

Change = Callable[[ModelsClient, str], Awaitable[ModelsChangeReply]]
WorkerId = Annotated[
    str | None, typer.Option("--worker", metavar="ID", help="A worker of `mlbus ping`.", show_default="every worker")
]


@options_of(ModelsLoadRequest, "Options", "dtype quantization pin")
def load(
    model: ModelId,
    worker: WorkerId = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 300.0,
    **options: Any,
) -> None:
    """Have workers load a model, downloaded first where it is not on their machine."""
    _change_workers(
        lambda models, name: models.load(model, worker=name, **options),
        worker,
        Connection(nats_url, timeout),
        as_json=as_json,
    )


@options_of(ModelsUnloadRequest, "Options", "force")
def unload(
    model: ModelId,
    worker: WorkerId = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 60.0,
    **options: Any,
) -> None:
    """Have workers take a model out of memory."""
    _change_workers(
        lambda models, name: models.unload(model, worker=name, **options),
        worker,
        Connection(nats_url, timeout),
        as_json=as_json,
    )


def reload(
    model: ModelId,
    version: Annotated[
        str | None,
        typer.Option("--version", metavar="NAME", help="As `info` names it, or base.", show_default="the live one"),
    ] = None,
    worker: WorkerId = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 300.0,
) -> None:
    """Have workers swap a model's weights, without a request that fails.

    A version that is named is then the live one in the whole fleet; with --worker it is served there alone.
    """
    if worker is None:
        _reload_everywhere(model, version, Connection(nats_url, timeout), as_json=as_json)
        return
    _change_workers(
        lambda models, name: models.reload(model, version=version, worker=name),
        worker,
        Connection(nats_url, timeout),
        as_json=as_json,
    )


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
    reply = ask_worker(Connection(nats_url, timeout), lambda ml: ml.models.promote(model, version, job=job))
    if as_json:
        print_json(reply.model_dump(exclude_none=True))
    elif reply.live:
        out.print(f"{reply.model} {reply.version} serves now", markup=False)
    else:
        out.print(f"what comes of job {reply.job} will serve once it has passed", markup=False)
    for note in reply.notes:
        err.print(note, markup=False)


def recommended(
    use: Annotated[
        Use | None,
        typer.Argument(metavar="USE", help="code, general: embedding; production, dev: generation."),
    ] = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
) -> None:
    """Show the model for each use, and what to take where it is not on the worker's machine."""
    reply = ask_worker(Connection(nats_url, timeout), lambda ml: ml.models.recommended(use))
    if as_json:
        print_json(reply.model_dump())
        return
    table = Table("for", "recommended", "here", "use now", box=None, pad_edge=False)
    for one in reply.recommended:
        table.add_row(one.use, one.recommended, "yes" if one.present else "no", one.model or "-")
    out.print(table)


def _change_workers(change: Change, worker: str | None, connection: Connection, *, as_json: bool) -> None:
    """Change the models of one worker or of each, and print the outcome.

    change: the request to one worker, by its id. Raises the first error once all workers have answered. A worker that
    lacks the model that another one has unloaded is not an error.
    """
    _print_outcome(*ask(connection, lambda nc: _change(nc, change, worker, connection.timeout_s)), as_json=as_json)


def _reload_everywhere(model: str, version: str | None, connection: Connection, *, as_json: bool) -> None:
    """Swap on all workers with one request, so that a named version becomes the live one, and print the outcome.

    Raises the first error of a worker.
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
    """The ids of all workers. Raises Unavailable if there is none."""
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
