"""`mlbus generate`: the completion of a prompt on standard output, streamed or at once."""

import re
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypedDict, cast

import typer
from nats.aio.client import Client

from subjects import codec, names
from subjects.client import MLClient
from subjects.client.generate import GenerateCallOptions
from subjects.errors import Cancelled, DeadlinePassed, Internal, MLError
from subjects.generate import GenerateDone, GenerateOptions, GenerateReply

from .ask import Connection, ask
from .options import Json, NatsUrl, Timeout, options_of
from .output import err, out, print_json
from .texts import STDIN

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
    output = Output(stream, as_json)
    end = ask(Connection(nats_url, timeout), lambda nc: _show(nc, form, call, output))
    if verbose:
        err.print(_facts(end, time.perf_counter() - started), markup=False)
    if kind := _UNFINISHED.get(end.finish_reason):
        raise kind(f"the text is not complete: it ended with {end.finish_reason}")


class Form(TypedDict, total=False):
    """One of the three forms of a prompt that MLClient.generate takes."""

    prompt: str
    messages: list[dict[str, str]]
    prefix: str
    suffix: str


@dataclass(frozen=True, slots=True)
class Output:
    """stream: print the text as it comes; None: only on a terminal."""

    stream: bool | None
    as_json: bool

    @property
    def streams(self) -> bool:
        return out.is_terminal and not self.as_json if self.stream is None else self.stream


def form_of(prompt: str | None, fim: str | None, system: str | None, *, chat: bool) -> Form:
    """The prompt that was typed; `-` is standard input, unchanged. Raises BadParameter."""
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
    text = _read_file(named["file"])
    start = _line_start(text, int(named["line"]), named["file"])
    return _split(text, start, int(named["column"] or 1), f"line {named['line']} of {named['file']}")


def _read_file(file: str) -> str:
    """The text of a file with its own line breaks."""
    try:
        return Path(file).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(f"{file} cannot be read: {error}") from None


def _line_start(text: str, number: int, file: str) -> int:
    """The offset of a line. After the last line break there is one more line, which is empty."""
    lines = text.split("\n")
    if not 1 <= number <= len(lines):
        raise _refused(f"{file} has no line {number}: it has {len(lines)}, counted from 1")
    return sum(len(line) + 1 for line in lines[: number - 1])


def _split(text: str, start: int, column: int, where: str) -> tuple[str, str]:
    line = text[start:].partition("\n")[0].removesuffix("\r")
    if not 1 <= column <= len(line) + 1:
        raise _refused(f"{where} has no column {column}: it ends at {len(line) + 1}, counted from 1")
    return text[: start + column - 1], text[start + column - 1 :]


def _refused(reason: str) -> typer.BadParameter:
    return typer.BadParameter(reason, param_hint="--fim")
