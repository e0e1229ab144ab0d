"""The list of commands, each with its module, which is imported when the command is typed.

`mlbus --help` must not wait for numpy, nor `mlbus ping` for torch.
"""

import functools
import importlib
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class LazyCommand(TyperCommand):
    """A command as a list of commands shows it.

    where: the module in this package and the name in it of the function, or of the Typer with its sub-commands.
    summary: the first line of its help.
    """

    def __init__(self, where: str, summary: str, panel: str | None = None) -> None:
        self._module, _, self._attribute = where.partition(":")
        super().__init__(self._attribute.removesuffix("_app"), help=summary, rich_help_panel=panel)

    @functools.cached_property
    def real(self) -> Any:
        """The command itself, with its options and sub-commands."""
        found = getattr(importlib.import_module(f".{self._module}", __package__), self._attribute)
        if isinstance(found, typer.Typer):
            command = typer.main.get_group(found)
            command.name = self.name
            return command
        app = typer.Typer(add_completion=False)
        app.command(self.name)(found)
        return typer.main.get_command(app)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.real.make_context(info_name, args, parent, **extra)


def group_of(panels: Mapping[str | None, Mapping[str, str]]) -> type[TyperGroup]:
    """For `typer.Typer(cls=...)`: a group of commands: by the panel of the help, `where` and `summary` of each."""

    class LazyGroup(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            for panel, commands in panels.items():
                for where, summary in commands.items():
                    command = LazyCommand(where, summary, panel)
                    self.commands[str(command.name)] = command

    return LazyGroup


Commands = group_of(
    {
        "Fine-tune": {
            "finetune:finetune": "Train an embedding model on your own code and verify the outcome, "
            "as a job on a worker.",
            "jobs:jobs_app": "Trainings: those that wait, go on or are over. Alone: the list, "
            "which is the administrator's.",
            "finetune:data_app": "Training data for fine-tuning, made on this machine.",
        },
        "Run": {
            "serve:serve": "Run a worker until Ctrl-C or SIGTERM, which finish what is in flight.",
            "gateway:gateway": "Answer over HTTP what workers answer over NATS, until Ctrl-C or SIGTERM, "
            "which finish what is in flight.",
            "admin:admin_app": "Set up the NATS server and who may use it.",
        },
        "Ask a worker": {
            "embed:embed": "Turn texts into vectors.",
            "embed:similarity": "Compare two texts, or rank candidates by their likeness to a query. "
            "The score is the cosine, -1 to 1.",
            "generate:generate": "Complete a text, answer a question or fill in a gap. "
            "Ctrl-C ends the work at the worker too.",
            "tokenize:tokenize": "Show the tokens that a model reads of a text, or count them.",
            "tokenize:detokenize": "Turn token ids into text.",
        },
        "Look around": {
            "workers:ping": "Show the workers that answer, what they serve and how fast. "
            "Exit code 1 when there is none.",
            "doctor:doctor": "Check this machine, the NATS server and the workers, and say what to do. "
            "Exit code 1 when something fails.",
            "workers:schema": "Print the JSON Schemas of the request and the reply on a subject, by subject.",
            "models:models_app": "The catalogue and the weights on this machine. Alone: the list.",
        },
    }
)

ModelsCommands = group_of(
    {
        None: {
            "models_weights:pull": "Fetch models from the Hub, as far as they are not here, and verify their files; "
            "show their licences.",
            "models:info": "Show all that is known of a model: its entry, where its weights are and which, "
            "its versions.",
            "models:history": "Show a model's versions on this machine, newest first: what they came of, "
            "their verdicts, which one is live.",
            "models_weights:prune": "Free disk space: delete downloads that no entry uses any more, "
            "or those of the models named.",
            "models_add:add": "Add a model of your own to the settings file, once it has been loaded "
            "and has passed its tests.",
            "models_check:check": "Show how well a model does: an embedding model finds code, "
            "under each mask and end token that it allows.",
            "models_plan:plan": "Show which models fit into a budget of memory, at which precision, "
            "and what would be evicted.",
        },
        "Ask workers; what changes them needs the role admin": {
            "workers:load": "Have workers load a model, downloaded first where it is not on their machine.",
            "workers:unload": "Have workers take a model out of memory.",
            "workers:reload": "Have workers swap a model's weights, without a request that fails.",
            "workers:promote": "Have all workers serve a version that has passed, prove it there, "
            "or go back to the one before.",
            "workers:recommended": "Show the model for each use, and what to take where it is not "
            "on the worker's machine.",
        },
    }
)
