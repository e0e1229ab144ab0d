"""The command line: a section for each command, from what typer makes of it."""

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import typer

from service.cli.main import app

from .markdown import escaped, literal, table


def commands() -> str:
    """A section for each command and sub-command, in the order of `--help`."""
    return "\n".join(_sections(typer.main.get_command(app), "mlbus"))


def _sections(command: Any, path: str) -> Iterator[str]:
    command = getattr(command, "real", command)  # of one that is imported when it is typed
    if command.params or not hasattr(command, "commands"):
        yield f"## {path}\n\n{_described(command)}```text\n{_usage(command, path)}\n```\n\n{_parameters(command)}"
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _sections(inner, f"{path} {name}")


def _described(command: Any) -> str:
    return literal(re.sub(r"\[/?bold\]", "", f"{command.help.strip()}\n\n")) if command.help else ""


def _usage(command: Any, path: str) -> str:
    arguments = [_argument(parameter) for parameter in command.params if parameter.param_type_name == "argument"]
    inner = ["[COMMAND]"] if hasattr(command, "commands") else []
    return " ".join([path, "[OPTIONS]", *arguments, *inner])


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    name = f"{name}..." if parameter.nargs == -1 else name
    return name if parameter.required else f"[{name}]"


def _parameters(command: Any) -> str:
    return table(
        ("option", "value", "default", "meaning"),
        [
            (_named(parameter), escaped(_value(parameter)), escaped(_default(parameter)), escaped(parameter.help or ""))
            for parameter in command.params
        ],
    )


def _named(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_argument(parameter)}`"
    return ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))


def _value(parameter: Any) -> str:
    kind = parameter.type_descriptor.annotation
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    if parameter.param_type_name == "argument" or parameter.is_flag:
        return ""
    value = f"`{parameter.metavar or kind.__name__.upper()}`"
    return f"{value}, repeatable" if parameter.multiple else value


def _default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    return "" if parameter.default in (None, False, ()) else f"`{parameter.default}`"
