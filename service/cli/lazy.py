"""Commands whose modules are imported when they are typed.

`mlbus --help` must not wait for numpy, nor `mlbus ping` for torch.
"""

import functools
import importlib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class LazyCommand(TyperCommand):
    """A command as a list of commands shows it.

    where: the module in this package and the name in it of the function, or of the Typer with its sub-commands.
    summary: the first line of its help.
    """

    def __init__(self, name: str, where: str, summary: str, panel: str | None = None) -> None:
        super().__init__(name, help=summary, rich_help_panel=panel)
        self._where = where

    @functools.cached_property
    def real(self) -> Any:
        """The command itself, with its options and sub-commands."""
        module, _, name = self._where.partition(":")
        found = getattr(importlib.import_module(f".{module}", __package__), name)
        if isinstance(found, typer.Typer):
            command = typer.main.get_group(found)
            command.name = self.name
            return command
        app = typer.Typer(add_completion=False)
        app.command(self.name)(found)
        return typer.main.get_command(app)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.real.make_context(info_name, args, parent, **extra)


def group_of(*commands: LazyCommand) -> type[TyperGroup]:
    """For `typer.Typer(cls=...)`: a group of these."""

    class LazyGroup(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            self.commands.update({str(command.name): command for command in commands})

    return LazyGroup


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
