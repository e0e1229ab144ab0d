"""`mlbus ping`, `mlbus schema`, and the commands of `mlbus models` that ask workers or change what they serve."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from nats.aio.client import Client

from subjects.client import MLClient
from subjects.client.discovery import Answer, ask_workers
from subjects.client.models import ModelsClient
from subjects.errors import MLError, NotFound, Unavailable
from subjects.models import (
    LoadedModel,
    ModelsChangeReply,
    ModelsLoadRequest,
    ModelsPromoteRequest,
    ModelsReloadRequest,
    ModelsUnloadRequest,
)
from subjects.names import Use

from .ask import NO_WORKER, STALL_S, Connection, ask, ask_worker
from .options import Json, ModelId, NatsUrl, Timeout, options_of
from .output import err, out, print_json, table_of

Change = Callable[[ModelsClient, str], Awaitable[ModelsChangeReply]]
WorkerId = Annotated[
    str | None, typer.Option("--worker", metavar="ID", help="A worker of `mlbus ping`.", show_default="every worker")
]


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
    rows = [(one["id"], one["version"], ", ".join(one["models"]), f"{one['ms']:.1f}") for one in workers]
    out.print(table_of(("worker", "version", "models", "ms"), rows))


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
    connection = Connection(nats_url, timeout)
    _change_workers(
        lambda models, worker: models.load(model, worker=worker, **options), worker, connection, as_json=as_json
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
    connection = Connection(nats_url, timeout)
    _change_workers(
        lambda models, worker: models.unload(model, worker=worker, **options), worker, connection, as_json=as_json
    )


@options_of(ModelsReloadRequest, "Options", "version")
def reload(
    model: ModelId,
    worker: WorkerId = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 300.0,
    **options: Any,
) -> None:
    """Have workers swap a model's weights, without a request that fails.

    A version that is named is then the live one in the whole fleet; with --worker it is served there alone.
    """
    connection = Connection(nats_url, timeout)
    if worker is None:
        _reload_everywhere(model, options, connection, as_json=as_json)
        return
    _change_workers(
        lambda models, worker: models.reload(model, worker=worker, **options), worker, connection, as_json=as_json
    )


@options_of(ModelsPromoteRequest, "Options", "job")
def promote(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="Id of the catalogue.")] = None,
    version: Annotated[str | None, typer.Argument(metavar="VERSION", help="One that has passed.")] = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 300.0,
    **options: Any,
) -> None:
    """Have all workers serve a version that has passed, prove it there, or go back to the one before.

    Ctrl-C, or the end of the time, has the version before serve again.
    """
    reply = ask_worker(Connection(nats_url, timeout), lambda ml: ml.models.promote(model, version, **options))
    if as_json:
        print_json(reply.model_dump(exclude_none=True))
    elif reply.live:
        out.print(f"{reply.model} {reply.version} serves now")
    else:
        out.print(f"what comes of job {reply.job} will serve once it has passed")
    for note in reply.notes:
        err.print(note)


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
    rows = [(one.use, one.recommended, "yes" if one.present else "no", one.model or "-") for one in reply.recommended]
    out.print(table_of(("for", "recommended", "here", "use now"), rows))


def _change_workers(change: Change, worker: str | None, connection: Connection, *, as_json: bool) -> None:
    """Change the models of one worker or of each, and print the outcome.

    change: the request to one worker, by its id. Raises the first error, with its worker, once all have answered. A
    worker that lacks the model that another one has unloaded is not an error.
    """

    async def changed(nc: Client) -> list[ModelsChangeReply | MLError]:
        workers = [worker] if worker else await _workers(nc, connection.timeout_s)
        models = MLClient(nc, timeout_s=connection.timeout_s, retries=0).models

        async def asked(name: str) -> ModelsChangeReply | MLError:
            try:
                return await change(models, name)
            except MLError as error:
                return type(error)(f"worker {name}: {error.message}")

        return await asyncio.gather(*map(asked, workers))

    _print_outcome(ask(connection, changed), as_json=as_json)


def _reload_everywhere(model: str, options: Mapping[str, Any], connection: Connection, *, as_json: bool) -> None:
    """Swap on all workers with one request, so that a named version becomes the live one, and print the outcome.

    Raises the first error of a worker.
    """

    async def reloaded(nc: Client) -> Sequence[ModelsChangeReply | MLError]:
        workers = await _workers(nc, connection.timeout_s)
        models = MLClient(nc, timeout_s=connection.timeout_s, retries=0).models
        return await models.reload_all(model, len(workers), **options)

    _print_outcome(ask(connection, reloaded), as_json=as_json)


def _print_outcome(results: Sequence[ModelsChangeReply | MLError], *, as_json: bool) -> None:
    replies = [result for result in results if isinstance(result, ModelsChangeReply)]
    if as_json:
        print_json([reply.model_dump(exclude_none=True) for reply in replies])
    elif replies:
        _show(replies)
    errors = [result for result in results if isinstance(result, MLError)]
    unloaded = any(reply.unloaded for reply in replies)
    failures = [error for error in errors if not (unloaded and isinstance(error, NotFound))]
    for error in errors:
        if error not in failures[:1]:
            err.print(str(error))
    if failures:
        raise failures[0]


async def _workers(nc: Client, timeout_s: float) -> list[str]:
    """The ids of all workers. Raises Unavailable if there is none."""
    workers = [str(answer.body["id"]) for answer in await ask_workers(nc, "PING", timeout_s, STALL_S)]
    if not workers:
        raise Unavailable(NO_WORKER)
    return workers


def _show(replies: Sequence[ModelsChangeReply]) -> None:
    rows = [
        (reply.worker, reply.model, "loaded" if reply.loaded else "unloaded", *_facts(model))
        for reply in replies
        if (model := reply.loaded or reply.unloaded)
    ]
    out.print(table_of(("worker", "model", "", "version", "device", "memory", "pinned"), rows))
    for reply in replies:
        for note in reply.loaded.notes if reply.loaded else ():
            err.print(f"{reply.worker}: {reply.model} {note}")


def _facts(loaded: LoadedModel) -> tuple[str, ...]:
    return loaded.version, loaded.device, f"{loaded.memory_bytes / 1e6:,.0f} MB", "yes" if loaded.pinned else "no"
