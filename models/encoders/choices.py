"""What a request may choose by name: a model's prompts and tasks, and what applies where it chooses none."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import UnknownPrompt, UnknownTask
from .base import TextOptions


@dataclass(frozen=True, slots=True)
class Choices:
    """A model's named prompts (name -> text) and tasks (name -> id), and its defaults."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    tasks: Mapping[str, int] = field(default_factory=dict)
    default_task: str | None = None

    def task(self, options: TextOptions) -> str | None:
        """The task that applies; None for a model without tasks. Raises UnknownTask."""
        if options.task is None:
            return self.default_task
        if options.task not in self.tasks:
            raise UnknownTask(options.task, tuple(self.tasks))
        return options.task

    def prompt(self, options: TextOptions) -> str:
        """The text to put in front: as given, as named, that of the task, or the default. Raises UnknownPrompt."""
        if options.prompt is not None:
            return options.prompt
        if options.prompt_name is not None and options.prompt_name not in self.prompts:
            raise UnknownPrompt(options.prompt_name, tuple(self.prompts))
        names = (options.prompt_name, self.task(options), self.default_prompt)
        return next((self.prompts[name] for name in names if name is not None and name in self.prompts), "")
