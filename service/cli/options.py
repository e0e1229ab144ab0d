"""The options that several commands share, and options made from the fields of a model."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

NATS = "NATS"

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
Texts = Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts; - reads one from standard input.")]
TextsFile = Annotated[
    str | None, typer.Option("--file", metavar="FILE", help="One text a line; - reads standard input.")
]
ModelId = Annotated[str, typer.Argument(metavar="MODEL", help="Id of the catalogue.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text for people.")]

_METAVARS = {
    "data_dir": "DIR",
    "id": "ID",
    "job": "ID",
    "listen": "HOST:PORT",
    "learning_rate": "RATE",
    "metrics_host": "HOST",
    "model": "ID",
    "models": "ID",
    "nats_url": "URL",
    "prompt_name": "NAME",
    "task": "NAME",
    "temperature": "T",
    "top_p": "P",
    "version": "NAME",
}
_METAVARS_OF_TYPES = {int: "N", str: "TEXT", list[str]: "TEXT"}
_LARGEST_SHOWN = 65536
"""A bound above this says nothing to a person."""


def options_of(
    model: type[BaseModel], panel: str, fields: str, *, helps: Mapping[str, str] | None = None, negatable: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each of these fields; it gets those that were typed, by name, in its `**options`.

    fields: their names, in the order of the help. helps: where the field's description does not fit the command.
    negatable: whether a field that is true or false has --no-… too. The model checks the values.
    """
    names = fields.split()

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**given: Any) -> None:
            command(**{name: value for name, value in given.items() if name not in names or value not in (None, [])})

        signature = inspect.signature(command)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=_option(name, model.model_fields[name], panel, (helps or {}).get(name), negatable),
            )
            for name in names
        ]
        keywords = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
        run.__signature__ = signature.replace(parameters=[*added, *keywords])  # type: ignore[attr-defined]
        return run

    return decorate


def _option(name: str, field: FieldInfo, panel: str, text: str | None, negatable: bool) -> Any:
    kind = _typed_as(field.annotation)
    option = "--" + name.replace("_", "-")
    if get_origin(kind) is list:  # one at a time
        option = option.removesuffix("s")
    if kind is bool and (negatable or field.annotation is not bool):
        option += f"/--no-{option[2:]}"
    default: Any = False if field.default in (None, PydanticUndefined) else field.default
    return Annotated[
        kind | None,
        typer.Option(
            option,
            metavar=_METAVARS.get(name, _METAVARS_OF_TYPES.get(kind)),
            help=text or _help(field),
            show_default=", ".join(default) if isinstance(default, tuple) else default is not False and str(default),
            rich_help_panel=panel,
        ),
    ]


def _typed_as(annotation: Any) -> Any:
    """The type of a value as it is typed: without constraints and None, and a list where there are several."""
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _typed_as(inner[0])
    if get_origin(annotation) in (Union, UnionType):
        return _typed_as(next(one for one in inner if one is not type(None)))
    if get_origin(annotation) in (list, tuple):
        return list[_typed_as(inner[0])]  # type: ignore[misc]
    return annotation


def _help(field: FieldInfo) -> str:
    """The field's description and range as a sentence."""
    bounds = {name: getattr(one, name) for one in field.metadata for name in ("ge", "le") if hasattr(one, name)}
    parts = [field.description] if field.description else []
    if len(bounds) == 2 and bounds["le"] <= _LARGEST_SHOWN:
        parts.append(f"{bounds['ge']} to {bounds['le']}")
    text = "; ".join(parts)
    upper = text if text.partition(" ")[0].endswith(":") else text[:1].upper() + text[1:]
    return upper and f"{upper}."


def require_none_given(context: typer.Context) -> None:
    """For a group that does something alone as well: raises BadParameter for options typed before a sub-command.

    The sub-command has options of its own, and would not get these.
    """
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is not None and source.name == "COMMANDLINE":
            option = parameter.opts[0]
            command = f"{context.command_path} {context.invoked_subcommand} {option}"
            raise typer.BadParameter(f"write it behind the command: {command}", param_hint=option)
