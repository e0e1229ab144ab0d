"""The prompts of a model: its entry's, over those that its folder brings. Reads no weights and imports no torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from models.catalogue import ModelSpec
from models.errors import ModelUnavailable
from models.weights import hub
from models.weights.model_files import next_step

FILE = "config_sentence_transformers.json"


@dataclass(frozen=True, slots=True)
class Prompts:
    """by_name: the texts; default: the name of the one that is used where none is named.

    complete: whether the folder has been looked into, because it is on this machine.
    """

    by_name: Mapping[str, str]
    default: str | None
    complete: bool


def prompts_of(spec: ModelSpec) -> Prompts:
    """What is known of a model's prompts. Raises ModelUnavailable where the file in its folder cannot be read."""
    try:
        path = hub.locate(spec, download=False) / FILE
    except ModelUnavailable:
        return Prompts(spec.prompts, spec.default_prompt, complete=False)
    try:
        stated = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        own = {name: text or "" for name, text in (stated.get("prompts") or {}).items()}
        return Prompts(own | spec.prompts, spec.default_prompt or stated.get("default_prompt_name"), complete=True)
    except (OSError, ValueError, AttributeError) as error:
        raise ModelUnavailable(spec.id, f"its {FILE} cannot be read ({error}); {next_step(spec)}") from error
