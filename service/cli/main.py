"""The `mlbus` command: what can be typed, and how its errors read.

Owns names, options and exit codes: 0 done, 1 failed, 2 not usable as typed or as set. `embed`, `similarity` and
`generate` are in text_commands.py, what is typed below `mlbus models` is in models_app.py. What a command does is in
its own module, imported when the command runs: `mlbus --help` must not wait for numpy, nor `mlbus ping` for torch.
"""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from models.loading import spinning

from .admin import admin_app
from .data_app import data_app
from .finetune import finetune
from .jobs import jobs_app
from .models_app import models_app
from .options import NATS, Config, DeviceName, DtypeName, Json, LogFormat, LogLevel, NatsUrl, Timeout
from .schema import schema
from .text_commands import embed, generate, similarity

app = typer.Typer(
    name="mlbus",
    help="Machine learning as a NATS service. Start a worker with [bold]mlbus serve --embedded-nats[/bold], then ask "
    "it from any NATS client, or with the commands below.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_WORKER, _ASK, _TUNE, _LOOK = "Run", "Ask a worker", "Fine-tune", "Look around"
_LOADING = "Models and device"
_WATCHING = "Logs and metrics"

app.command(rich_help_panel=_TUNE)(finetune)
app.add_typer(jobs_app, name="jobs", rich_help_panel=_TUNE)
app.add_typer(data_app, name="data", rich_help_panel=_TUNE)
app.add_typer(admin_app, name="admin", rich_help_panel=_WORKER)
app.add_typer(models_app, name="models", rich_help_panel=_LOOK)


def main() -> None:
    """Run the command; an error that somebody foresaw is one line, any other its traceback."""
    spinning.prepare()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal gets ? for what it cannot show
    try:
        app()
    except Exception as error:
        from .errors import explain

        explained = explain(error)
        if explained is None:
            raise
        code, line = explained
        typer.echo(f"mlbus: {line}", err=True)
        _forget_unwritten()
        sys.exit(code)


def _forget_unwritten() -> None:
    """Python flushes standard output once more as it ends, and would report a full disk a second time."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mlbus {version('mlbus')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """What holds for every command."""


@app.command(rich_help_panel=_WORKER)
def serve(
    config: Config = None,
    nats_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="NATS servers to join; absent: NATS_URL, the nats command's context, nats://127.0.0.1:4222.",
            rich_help_panel=NATS,
        ),
    ] = None,
    embedded_nats: Annotated[
        bool | None,
        typer.Option(
            "--embedded-nats/--no-embedded-nats",
            help="Start a nats-server too, whatever NATS_URL says.",
            rich_help_panel=NATS,
        ),
    ] = None,
    nats_port: Annotated[
        int | None,
        typer.Option(metavar="N", help="Its port; 0: any free one.", show_default="4222", rich_help_panel=NATS),
    ] = None,
    monitor: Annotated[
        bool | None,
        typer.Option(
            "--monitor/--no-monitor",
            help="Its monitoring over HTTP on loopback, which asks for no password.",
            show_default="no",
            rich_help_panel=NATS,
        ),
    ] = None,
    nats_monitor_port: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Its monitoring port; 0: any free one.", show_default="8222", rich_help_panel=NATS
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Folder of everything that is kept.", show_default="var", rich_help_panel=NATS
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID",
            help="Model to load; repeat for more, the first that takes a request serves it where it names none.",
            show_default="minilm and smollm2",
            rich_help_panel=_LOADING,
        ),
    ] = None,
    strict: Annotated[
        bool | None,
        typer.Option("--strict/--no-strict", help="Do not start without one of them.", rich_help_panel=_LOADING),
    ] = None,
    device: Annotated[
        DeviceName | None,
        typer.Option(help="auto: CUDA, else CPU.", show_default="auto", rich_help_panel=_LOADING),
    ] = None,
    dtype: Annotated[
        DtypeName | None,
        typer.Option(
            help="auto: as the model's entry says, for most bf16 where the device computes in it.",
            show_default="auto",
            rich_help_panel=_LOADING,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Compute threads.", show_default="all cores but one past two", rich_help_panel=_LOADING
        ),
    ] = None,
    metrics_host: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="Where metrics and health are served over HTTP.",
            show_default="127.0.0.1",
            rich_help_panel=_WATCHING,
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The port of both; 0: any free one.",
            show_default="9464",
            rich_help_panel=_WATCHING,
        ),
    ] = None,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(help="auto: console on a terminal, else JSON.", show_default="auto", rich_help_panel=_WATCHING),
    ] = None,
    log_level: Annotated[LogLevel | None, typer.Option(show_default="info", rich_help_panel=_WATCHING)] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings in force as TOML and exit.")
    ] = False,
) -> None:
    """Run a worker until Ctrl-C or SIGTERM, which finish what is in flight.

    Flags win over variables (MLBUS_DEVICE and so on), variables over the settings file.

    --print-config shows the outcome, and what else can be set.
    """
    from ..config import read_settings
    from .serve import run

    settings = read_settings(
        config,
        nats_url=nats_url,
        embedded_nats=embedded_nats,
        nats_port=nats_port,
        monitor=monitor,
        nats_monitor_port=nats_monitor_port,
        data_dir=data_dir,
        models=tuple(model) if model else None,
        strict=strict,
        device=device,
        dtype=dtype,
        threads=threads,
        metrics_host=metrics_host,
        metrics_port=metrics_port,
        log_format=log_format,
        log_level=log_level,
    )
    raise typer.Exit(run(settings, print_config))


app.command(rich_help_panel=_ASK)(embed)
app.command(rich_help_panel=_ASK)(similarity)
app.command(rich_help_panel=_ASK)(generate)


@app.command(rich_help_panel=_LOOK)
def ping(as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Show the workers that answer, what they serve and how fast. Exit code 1 when there is none."""
    from .ask import Connection
    from .ping import print_workers

    print_workers(Connection(nats_url, timeout), as_json=as_json)


@app.command(rich_help_panel=_LOOK)
def doctor(config: Config = None, as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Check this machine, the NATS server and the workers, and say what to do. Exit code 1 when something fails."""
    from .doctor import print_findings

    raise typer.Exit(print_findings(config, nats_url, timeout, as_json=as_json))


app.command(rich_help_panel=_LOOK)(schema)
