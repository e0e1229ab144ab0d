"""`mlbus finetune`: has a job begun, and shows how it goes on where that was asked for."""

import io
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import orjson
import typer
from nats.aio.client import Client

from subjects import codec
from subjects.client import MLClient
from subjects.client.jobs import FinetuneCallOptions
from subjects.embed import MAX_TEXT_CHARS
from subjects.errors import Conflict, MLError
from subjects.finetune import MAX_PAIRS, FinetuneReply, TrainingPair

from ..bus.errors import BusError
from .ask import Connection, ask
from .job_progress import watch_job
from .output import err, out, print_json
from .texts import STDIN

_MAX_LINE_BYTES = 64 * MAX_TEXT_CHARS


@dataclass(frozen=True, slots=True)
class Order:
    """What was typed: a codebase, or a file of pairs; options: fields of ml.finetune's options.

    promote: whether the version that comes of it is to serve.
    """

    path: Path | None
    data: str | None
    model: str | None
    job_id: str | None
    promote: bool
    options: dict[str, Any]

    def source(self) -> dict[str, Any]:
        """What is trained on, as MLClient.finetune takes it. Raises BadParameter."""
        if (self.path is None) == (self.data is None):
            raise typer.BadParameter("give the path of a codebase, or --data FILE", param_hint="PATH")
        return {"pairs": read_pairs(self.data)} if self.data is not None else {"path": cast(Path, self.path).absolute()}


def start(order: Order, connection: Connection, *, watch: bool, as_json: bool) -> int:
    """Have the job begun -> exit code. Raises BadParameter, BusError, MLError."""
    source = order.source()
    reply = ask(connection, lambda nc: _submit(nc, order, source, connection.timeout_s))
    if order.promote:
        _refuse_another(reply, order)
        _promote(reply, connection)
    if watch:
        if reply.duplicate and not as_json:
            out.print(_queued(reply))
        return watch_job(reply.job, connection, as_json=as_json)
    if as_json:
        print_json(reply.model_dump())
    else:
        out.print(
            f"{_queued(reply)}\nfollow it:  mlbus jobs watch {reply.job}\ncancel it:  mlbus jobs cancel {reply.job}"
        )
    return 0


async def _submit(nc: Client, order: Order, source: dict[str, Any], timeout_s: float) -> FinetuneReply:
    named = {"model": order.model, "id": order.job_id, "timeout_s": timeout_s}
    options = cast(FinetuneCallOptions, {**named, **order.options})
    return await MLClient(nc).finetune(**source, **options)


def _refuse_another(reply: FinetuneReply, order: Order) -> None:
    """Raises Conflict where the id is that of a job that was there: it may be anybody's, and learn from anything.

    Only an id that was typed can be: one of our own making that comes back is the same job, asked for twice.
    """
    if reply.duplicate and order.job_id is not None:
        raise Conflict(
            f"job {reply.job} was there already, perhaps another's with other data: nothing new begins, and nothing is "
            f"promoted. See `mlbus jobs get {reply.job}`; if it is yours, `mlbus models promote --job {reply.job}`"
        )


def _promote(reply: FinetuneReply, connection: Connection) -> None:
    """Have what comes of the job served; where that is refused, the job goes on all the same, and that is said."""
    try:
        ask(connection, lambda nc: MLClient(nc, timeout_s=connection.timeout_s).models.promote(job=reply.job))
    except (BusError, MLError):
        err.print(f"job {reply.job} goes on, and what passes is kept as a candidate:", markup=False)
        raise


def _queued(reply: FinetuneReply) -> str:
    return f"job {reply.job} was there already: nothing new begins" if reply.duplicate else f"job {reply.job} is queued"


def read_pairs(file: str) -> list[TrainingPair]:
    """The pairs of a file of JSON lines, `-` for standard input. Raises BadParameter, which names the line."""
    try:
        with nullcontext(sys.stdin.buffer) if file == STDIN else Path(file).open("rb") as lines:
            pairs = list(_pairs(lines, file))
    except OSError as error:
        raise _bad(f"{file} cannot be read: {error}") from None
    if not pairs:
        raise _bad(f"{file} holds no pairs")
    return pairs


def _pairs(lines: BinaryIO | io.BufferedIOBase, file: str) -> Iterator[TrainingPair]:
    number = count = 0
    while line := lines.readline(_MAX_LINE_BYTES + 1):
        number += 1
        if line.isspace():
            continue
        count += 1
        if count > MAX_PAIRS:
            raise _bad(f"{file} holds more than {MAX_PAIRS} pairs; leave some out")
        yield _pair(line, f"line {number} of {file} is no pair")


def _pair(line: bytes, complaint: str) -> TrainingPair:
    if len(line) > _MAX_LINE_BYTES:
        raise _bad(f"{complaint}: it is longer than {_MAX_LINE_BYTES} bytes")
    try:
        fields = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise _bad(f"{complaint}: unreadable JSON: {error}") from None
    if not isinstance(fields, dict):
        raise _bad(f'{complaint}: write it as {{"anchor": …, "positive": …, "negatives": […]}}')
    try:
        return codec.validate(fields, TrainingPair)
    except MLError as error:
        raise _bad(f"{complaint}: {error.message}") from None


def _bad(reason: str) -> typer.BadParameter:
    return typer.BadParameter(reason, param_hint="--data")
