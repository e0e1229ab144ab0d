"""`mlbus generate`: a prompt in, its completion on standard output, as it is written or at once."""

import sys
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import typer
from nats.aio.client import Client

from subjects import codec, names
from subjects.client import MLClient
from subjects.client.generate import GenerateCallOptions
from subjects.errors import Cancelled, DeadlinePassed, Internal, MLError
from subjects.generate import GenerateDone, GenerateReply

from .ask import Connection, ask
from .gap import split_at
from .output import err, out, print_json
from .texts import STDIN

_UNFINISHED: dict[str, type[MLError]] = {"timeout": DeadlinePassed, "cancelled": Cancelled, "error": Internal}
_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\r\t"}
"""What could move the cursor of a terminal or worse. Into a pipe everything goes as it is."""


End: TypeAlias = GenerateReply | GenerateDone


class Form(TypedDict, total=False):
    """What is completed: one of the three that MLClient.generate takes."""

    prompt: str
    messages: list[dict[str, str]]
    prefix: str
    suffix: str


@dataclass(frozen=True, slots=True)
class Output:
    """stream: print as it is written; None: on a terminal. verbose: tell how it ended, on standard error."""

    stream: bool | None
    verbose: bool
    as_json: bool

    @property
    def streams(self) -> bool:
        return out.is_terminal and not self.as_json if self.stream is None else self.stream


def form_of(prompt: str | None, fim: str | None, system: str | None, *, chat: bool) -> Form:
    """What was typed as what is asked; `-` for the prompt is standard input as it is. Raises BadParameter."""
    chat = chat or system is not None
    if fim is not None:
        if prompt is not None or chat:
            raise typer.BadParameter("goes without PROMPT, --chat and --system", param_hint="--fim")
        prefix, suffix = split_at(fim)
        return {"prefix": prefix, "suffix": suffix}
    if prompt is None:
        raise typer.BadParameter("give a prompt, - for standard input, or --fim FILE:LINE", param_hint="PROMPT")
    text = _standard_input() if prompt == STDIN else prompt
    if not chat:
        return {"prompt": text}
    turns = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*turns, {"role": "user", "content": text}]}


def _standard_input() -> str:
    try:
        return sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"standard input cannot be read: {error}", param_hint="PROMPT") from None


def print_completion(form: Form, options: GenerateCallOptions, connection: Connection, output: Output) -> None:
    """Complete and print. Raises BusError, MLError; also where the text that was printed is not complete."""
    options = {**options, "timeout_s": connection.timeout_s}
    started = time.perf_counter()
    end = ask(connection, lambda nc: _show(nc, form, options, output))
    if output.verbose:
        err.print(_facts(end, time.perf_counter() - started), markup=False)
    if kind := _UNFINISHED.get(end.finish_reason):
        raise kind(f"the text is not complete: it ended with {end.finish_reason}")


async def _show(nc: Client, form: Form, options: GenerateCallOptions, output: Output) -> End:
    return await (_stream if output.streams else _print_whole)(nc, form, options, output)


async def _print_whole(nc: Client, form: Form, options: GenerateCallOptions, output: Output) -> GenerateReply:
    reply = await MLClient(nc).generate(**form, **options)
    if output.as_json:
        print_json(reply.model_dump(exclude_none=True))
    else:
        _write(reply.text)
        _end_line(reply.text)
    return reply


async def _stream(nc: Client, form: Form, options: GenerateCallOptions, output: Output) -> GenerateDone:
    last = ""
    async with aclosing(MLClient(nc).stream(**form, **options)) as frames:
        async for frame in frames:
            if output.as_json:
                typer.echo(codec.dumps(frame, names.JSON).decode())
            elif not isinstance(frame, GenerateDone):
                _write(last := frame.text)
            if isinstance(frame, GenerateDone):
                _end_line(last)
                return frame
    raise Internal("the stream ended without its last frame")


def _write(text: str) -> None:
    out.file.write(text.translate(_CONTROLS) if out.is_terminal else text)
    out.file.flush()


def _end_line(text: str) -> None:
    """A terminal's next prompt stands on a line of its own; a pipe gets the text and nothing else."""
    if out.is_terminal and not text.endswith("\n"):
        _write("\n")


def _facts(end: End, seconds: float) -> str:
    used = end.usage
    cached = f" ({used.cached_tokens} cached)" if used.cached_tokens else ""
    at = "" if end.stop_reason is None else f" at {end.stop_reason!r}"
    return (
        f"{end.model} {end.version}: {used.prompt_tokens}{cached} + {used.completion_tokens} tokens "
        f"in {seconds:.2f} s, {end.finish_reason}{at}, seed {end.seed}"
    )
