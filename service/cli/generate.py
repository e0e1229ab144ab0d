"""`mlbus generate`: the completion of a prompt on standard output, streamed or at once."""

import re
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, TypeAlias, cast

import typer

from subjects import codec, names
from subjects.client import MLClient
from subjects.client.generate import GenerateCallOptions
from subjects.errors import Cancelled, DeadlinePassed, Internal, MLError
from subjects.generate import GenerateDone, GenerateOptions, GenerateReply

from .ask import Connection, ask_worker
from .files import STDIN
from .options import Json, NatsUrl, Timeout, options_of
from .output import err, out, print_json

_FORM = "What is completed"
_WRITING = "How the text is written"
_LOGPROBS = "With --json: each token's log-probability, with --echo PROMPT's too, and the N likeliest there."
_UNFINISHED: dict[str, type[MLError]] = {"timeout": DeadlinePassed, "cancelled": Cancelled, "error": Internal}
_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\r\t"}
"""Control characters, which could move the cursor of a terminal or do worse. A pipe gets the text unchanged."""
_PLACE = re.compile(r"(?P<file>.+?):(?P<line>[0-9]{1,9})(?::(?P<column>[0-9]{1,9}))?")

End: TypeAlias = GenerateReply | GenerateDone


@options_of(
    GenerateOptions,
    _WRITING,
    "model max_tokens temperature top_p top_k seed stop echo logprobs",
    helps={"stop": "End before this text; repeat for more.", "logprobs": _LOGPROBS},
)
def generate(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Text to go on with; - reads standard input.")
    ] = None,
    fim: Annotated[
        str | None,
        typer.Option(
            metavar="FILE:LINE[:COLUMN]",
            help="Fill in the middle: print what may stand before this place.",
            rich_help_panel=_FORM,
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="PROMPT is a question to answer, by a chat model.", rich_help_panel=_FORM)
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With --chat: what holds for it.", rich_help_panel=_FORM)
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Print as it is written.", show_default="on a terminal"),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tell tokens, time and seed on standard error.")
    ] = False,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 120.0,
    **options: Any,
) -> None:
    """Complete a text, answer a question or fill in a gap. Ctrl-C ends the work at the worker too.

    With --json the reply is an object; with --stream as well, each frame is one, on a line of its own.
    """
    if "logprobs" in options and not as_json:
        raise typer.BadParameter("is for --json", param_hint="--logprobs")
    form = form_of(prompt, fim, system, chat=chat)
    call = cast(GenerateCallOptions, {**options, "timeout_s": timeout})
    started = time.perf_counter()
    streams = out.is_terminal and not as_json if stream is None else stream
    show = _stream if streams else _print_whole
    end = ask_worker(Connection(nats_url, timeout), lambda ml: show(ml, form, call, as_json))
    if verbose:
        err.print(_facts(end, time.perf_counter() - started))
    if kind := _UNFINISHED.get(end.finish_reason):
        raise kind(f"the text is not complete: it ended with {end.finish_reason}")


def form_of(prompt: str | None, fim: str | None, system: str | None, *, chat: bool) -> dict[str, Any]:
    """The prompt that was typed, for MLClient.generate; `-` is standard input, unchanged. Raises BadParameter."""
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


async def _print_whole(ml: MLClient, form: dict[str, Any], options: GenerateCallOptions, as_json: bool) -> End:
    reply = await ml.generate(**form, **options)
    if as_json:
        print_json(reply.model_dump(exclude_none=True))
    else:
        _write(reply.text)
        _end_line(reply.text)
    return reply


async def _stream(ml: MLClient, form: dict[str, Any], options: GenerateCallOptions, as_json: bool) -> End:
    last = ""
    async with aclosing(ml.stream(**form, **options)) as frames:
        async for frame in frames:
            if as_json:
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
    """End the line on a terminal, so that its next prompt begins a line; a pipe gets only the text."""
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


def split_at(place: str) -> tuple[str, str]:
    """The text of a file before a place, FILE:LINE or FILE:LINE:COLUMN, and the rest of it.

    Lines and columns are counted from 1; without a column the place is the beginning of the line. Raises BadParameter
    where the file cannot be read or has no such place.
    """
    named = _PLACE.fullmatch(place)
    if named is None:
        raise _refused(f"{place!r} is not FILE:LINE or FILE:LINE:COLUMN")
    file, number, column = named["file"], int(named["line"]), int(named["column"] or 1)
    try:
        text = Path(file).read_bytes().decode()  # with its own line breaks
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(f"{file} cannot be read: {error}") from None
    lines = text.split("\n")  # after the last line break there is one more line, which is empty
    if not 1 <= number <= len(lines):
        raise _refused(f"{file} has no line {number}: it has {len(lines)}, counted from 1")
    end = len(lines[number - 1].removesuffix("\r")) + 1
    if not 1 <= column <= end:
        raise _refused(f"line {number} of {file} has no column {column}: it ends at {end}, counted from 1")
    at = sum(len(line) + 1 for line in lines[: number - 1]) + column - 1
    return text[:at], text[at:]


def _refused(reason: str) -> typer.BadParameter:
    return typer.BadParameter(reason, param_hint="--fim")
