"""The list of commands, and the page made from it."""

from collections.abc import Iterator
from typing import Any

import typer

from service.cli.commands import LazyCommand
from service.cli.main import app
from tools.reference.commands import commands


def lazy_commands(group: Any) -> Iterator[LazyCommand]:
    for command in group.commands.values():
        if isinstance(command, LazyCommand):
            yield command
            if hasattr(command.real, "commands"):
                yield from lazy_commands(command.real)


def test_the_list_of_commands_says_what_their_own_help_does():
    listed = list(lazy_commands(typer.main.get_command(app)))
    assert len(listed) > 20
    own = {command.name: command.real.help.partition("\n\n")[0] for command in listed}
    assert {command.name: command.help for command in listed} == own


def test_the_reference_has_the_options_of_every_command():
    page = commands()
    assert page.count("| `--json` |") > 20
    assert "## mlbus models prune" in page
