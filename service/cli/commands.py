"""The list of commands, each with its module, which is imported when the command is typed.

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


def group_of(*commands: LazyCommand) -> type[TyperGroup]:
    """For `typer.Typer(cls=...)`: a group of these."""

    class LazyGroup(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            self.commands.update({str(command.name): command for command in commands})

    return LazyGroup


_TUNE, _RUN, _ASK, _LOOK = "Fine-tune", "Run", "Ask a worker", "Look around"
_CHANGE = "Ask workers; what changes them needs the role admin"

Commands = group_of(
    LazyCommand(
        "finetune:finetune",
        "Train an embedding model on your own code and verify the outcome, as a job on a worker.",
        _TUNE,
    ),
    LazyCommand(
        "jobs:jobs_app",
        "Trainings: those that wait, go on or are over. Alone: the list, which is the administrator's.",
        _TUNE,
    ),
    LazyCommand("finetune:data_app", "Training data for fine-tuning, made on this machine.", _TUNE),
    LazyCommand("serve:serve", "Run a worker until Ctrl-C or SIGTERM, which finish what is in flight.", _RUN),
    LazyCommand(
        "gateway:gateway",
        "Answer over HTTP what workers answer over NATS, until Ctrl-C or SIGTERM, which finish what is in flight.",
        _RUN,
    ),
    LazyCommand("admin:admin_app", "Set up the NATS server and who may use it.", _RUN),
    LazyCommand("embed:embed", "Turn texts into vectors.", _ASK),
    LazyCommand(
        "embed:similarity",
        "Compare two texts, or rank candidates by their likeness to a query. The score is the cosine, -1 to 1.",
        _ASK,
    ),
    LazyCommand(
        "generate:generate",
        "Complete a text, answer a question or fill in a gap. Ctrl-C ends the work at the worker too.",
        _ASK,
    ),
    LazyCommand("tokenize:tokenize", "Show the tokens that a model reads of a text, or count them.", _ASK),
    LazyCommand("tokenize:detokenize", "Turn token ids into text.", _ASK),
    LazyCommand(
        "workers:ping",
        "Show the workers that answer, what they serve and how fast. Exit code 1 when there is none.",
        _LOOK,
    ),
    LazyCommand(
        "doctor:doctor",
        "Check this machine, the NATS server and the workers, and say what to do. Exit code 1 when something fails.",
        _LOOK,
    ),
    LazyCommand(
        "workers:schema", "Print the JSON Schemas of the request and the reply on a subject, by subject.", _LOOK
    ),
    LazyCommand("models:models_app", "The catalogue and the weights on this machine. Alone: the list.", _LOOK),
)

ModelsCommands = group_of(
    LazyCommand(
        "models_weights:pull",
        "Fetch models from the Hub, as far as they are not here, and verify their files; show their licences.",
    ),
    LazyCommand(
        "models:info", "Show all that is known of a model: its entry, where its weights are and which, its versions."
    ),
    LazyCommand(
        "models:history",
        "Show a model's versions on this machine, newest first: what they came of, their verdicts, which one is live.",
    ),
    LazyCommand(
        "models_weights:prune",
        "Free disk space: delete downloads that no entry uses any more, or those of the models named.",
    ),
    LazyCommand(
        "models_add:add",
        "Add a model of your own to the settings file, once it has been loaded and has passed its tests.",
    ),
    LazyCommand(
        "models_check:check",
        "Show how well a model does: an embedding model finds code, under each mask and end token that it allows.",
    ),
    LazyCommand(
        "models_plan:plan",
        "Show which models fit into a budget of memory, at which precision, and what would be evicted.",
    ),
    LazyCommand(
        "workers:load", "Have workers load a model, downloaded first where it is not on their machine.", _CHANGE
    ),
    LazyCommand("workers:unload", "Have workers take a model out of memory.", _CHANGE),
    LazyCommand("workers:reload", "Have workers swap a model's weights, without a request that fails.", _CHANGE),
    LazyCommand(
        "workers:promote",
        "Have all workers serve a version that has passed, prove it there, or go back to the one before.",
        _CHANGE,
    ),
    LazyCommand(
        "workers:recommended",
        "Show the model for each use, and what to take where it is not on the worker's machine.",
        _CHANGE,
    ),
)
