"""The options that several commands share, each with its help text. Imports nothing heavy."""

import math
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

DeviceName: TypeAlias = Literal["auto", "cuda", "cpu"]
DtypeName: TypeAlias = Literal["auto", "fp32", "bf16", "fp16"]
GraphName: TypeAlias = Literal["fp32", "fp16"]
QuantizationName: TypeAlias = Literal["int8", "int4"]
KindName: TypeAlias = Literal["embedding", "generation"]
RuntimeName: TypeAlias = Literal["torch", "onnx"]
UseName: TypeAlias = Literal["code", "general", "production", "dev"]
RoleName: TypeAlias = Literal["client", "admin"]
LogFormat: TypeAlias = Literal["auto", "console", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
TruncateSide: TypeAlias = Literal["end", "start", "error"]
PriorityName: TypeAlias = Literal["interactive", "bulk"]
FileEncoding: TypeAlias = Literal["float32", "float16", "int8", "binary"]

NATS = "NATS"
MODEL = "How the texts are read"

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings file; absent: MLBUS_CONFIG, else mlbus.toml.")
]
NatsUrl = Annotated[
    str | None,
    typer.Option(
        "--nats-url",
        envvar="MLBUS_NATS_URL",
        metavar="URL",
        help="NATS servers; absent: NATS_URL, the nats command's context, nats://127.0.0.1:4222.",
        rich_help_panel=NATS,
    ),
]


def _number(value: float) -> float:
    if math.isnan(value):  # it passes min and max
        raise typer.BadParameter("nan is not a time")
    return value


Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0.1,
        max=900,
        callback=_number,
        metavar="SECONDS",
        help="For each request.",
        rich_help_panel=NATS,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text for people.")]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="ID", help="Model; absent: the worker's default.", rich_help_panel=MODEL),
]
Dimensions = Annotated[
    int | None,
    typer.Option("--dimensions", metavar="N", help="Cut vectors to N values.", rich_help_panel=MODEL),
]
Task = Annotated[
    str | None,
    typer.Option("--task", metavar="NAME", help="One of the model's tasks.", rich_help_panel=MODEL),
]
PromptName = Annotated[
    str | None,
    typer.Option("--prompt-name", metavar="NAME", help="One of the model's own prompts.", rich_help_panel=MODEL),
]
Prompt = Annotated[
    str | None,
    typer.Option("--prompt", metavar="TEXT", help="Put before each text.", rich_help_panel=MODEL),
]
Truncate = Annotated[
    TruncateSide,
    typer.Option(
        "--truncate", help="Which end of a text that is too long is cut; error: refuse it.", rich_help_panel=MODEL
    ),
]
Priority = Annotated[
    PriorityName | None,
    typer.Option("--priority", help="Who waits for whom.", show_default="bulk past 32 texts", rich_help_panel=MODEL),
]
