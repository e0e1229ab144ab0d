"""`mlbus serve`: runs a worker, and shows its start on a terminal."""

import asyncio
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import structlog
import typer
from rich.progress import Progress
from rich.text import Text

from ..bus.errors import BadBusSettings
from ..bus.settings import NatsSettings
from ..settings import Settings, read_settings
from ..settings.gateway import HttpSettings
from ..settings.toml import as_toml
from ..telemetry import configure_logging
from .gateway import HTTP, with_http
from .options import NATS, Config, options_of
from .output import err, spinner

if TYPE_CHECKING:
    from ..app import Started

log = structlog.get_logger(__name__)


@options_of(
    Settings,
    NATS,
    "nats_url embedded_nats nats_port monitor nats_monitor_port data_dir",
    helps={"embedded_nats": "Start a nats-server too, whatever NATS_URL says."},
    negatable=True,
)
@options_of(Settings, HTTP, "gateway", negatable=True)
@options_of(HttpSettings, HTTP, "listen insecure")
@options_of(Settings, "Models and device", "models strict device dtype threads", negatable=True)
@options_of(Settings, "Logs and metrics", "metrics_host metrics_port log_format log_level")
def serve(
    config: Config = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings in force as TOML and exit.")
    ] = False,
    **flags: Any,
) -> None:
    """Run a worker until Ctrl-C or SIGTERM, which finish what is in flight.

    Flags win over variables (MLBUS_DEVICE and so on), variables over the settings file.

    --print-config shows the outcome, and what else can be set.
    """
    settings = read_settings(config, **with_http(flags))
    if print_config:
        typer.echo(as_toml(settings), nl=False)
        return
    from ..app import serve as serve_until_stopped  # what it imports is not needed to print the settings or the help

    with _shown_start(settings) as start:
        code = asyncio.run(serve_until_stopped(settings, on_step=start.step, on_ready=start.ready))
    raise typer.Exit(code)


@dataclass(frozen=True, slots=True)
class Start:
    """Callbacks for the steps of the start and for its end."""

    step: Callable[[str], None]
    ready: "Callable[[Started], None]"


@contextmanager
def _shown_start(settings: Settings) -> Iterator[Start]:
    """Log lines; on a terminal also a spinner below them and, at the end, commands to try."""
    if not err.is_terminal or settings.log_format == "json":
        configure_logging(settings.log_format, settings.log_level)
        yield Start(lambda step: log.info("start.step_began", step=step), lambda started: None)
        return
    progress = spinner()
    with redirect_stderr(LogAbove(progress, sys.stderr)):
        configure_logging(settings.log_format, settings.log_level)
    task = progress.add_task("starting")

    def ready(started: "Started") -> None:
        progress.stop()
        err.print(ready_text(started, _found_url()))

    with progress:
        yield Start(lambda step: progress.reset(task, description=step), ready)


def _found_url() -> str | None:
    """The NATS server that other commands will find; None if their settings cannot be read."""
    try:
        return NatsSettings.from_env(os.environ).url
    except BadBusSettings:  # a worker with an embedded server needs none of it
        return None


class LogAbove(io.TextIOBase):
    """A file for log lines that prints them above a spinner while it runs, and writes to the file afterwards."""

    def __init__(self, progress: Progress, file: TextIO) -> None:
        self._progress = progress
        self._file = file
        self._line = ""

    def isatty(self) -> bool:
        return self._file.isatty()

    def write(self, text: str) -> int:
        if not self._progress.live.is_started:
            return self._file.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._progress.console.print(Text.from_ansi(line))
        return len(text)

    def flush(self) -> None:
        self._file.flush()


def ready_text(started: "Started", found_url: str | None) -> str:
    """The text for a person once the worker answers. found_url: the server that other commands will find."""
    lines = ["", "mlbus is ready.", "", *_facts(started), "", "Try, in another terminal:"]
    if found_url != started.nats.url:
        lines.append(f"  export NATS_URL={started.nats.url}")
    lines += [
        "  nats req ml.embed 'def hello(): pass'",
        "  nats micro info ml",
        "  nats req ml.generate 'def fib(n):' --timeout 60s",
        "  mlbus generate --chat 'Write a Python function is_even(n).'",
        "  mlbus embed 'def hello(): pass'",
        "  mlbus similarity 'def add(a, b): return a + b' 'the sum of two numbers'",
        "",
        "Ctrl-C finishes what is in flight and stops; a second one stops at once.",
        "",
    ]
    return "\n".join(lines)


def _facts(started: "Started") -> Iterator[str]:
    server = started.server
    yield f"  NATS         {started.nats.url}" + (" (embedded)" if server else f" as {started.nats.identity}")
    if server:
        yield f"  credentials  {server.credentials} (of each role; a local client needs none)"
        if server.monitor_url:
            yield f"  monitoring   {server.monitor_url}"
    if started.gateway:
        yield f"  HTTP         {started.gateway}, described at {started.gateway}/docs"
    defaults = started.manager.defaults
    for facts in started.models:
        served = [form for form, model in defaults.items() if model == facts.model]
        default = f" (default for {', '.join(served)})" if served else ""
        yield f"  model        {facts.model}{default} on {facts.device} in {facts.dtype}, {facts.version}"
        yield from (f"  note         {facts.model} {note}" for note in facts.notes)
    for error in started.manager.missing.values():
        yield f"  missing      {error}; it is tried again later"
    if started.metrics_port is not None:
        host = f"[{started.metrics_host}]" if ":" in started.metrics_host else started.metrics_host
        yield f"  metrics      http://{host}:{started.metrics_port}/metrics, beside it /healthz and /readyz"
