"""A gap whose text is too long for the model's context, cut as llama.cpp cuts it: to what is nearest to the gap."""

from subjects import MLClient
from subjects.errors import NotFound, TooLarge
from subjects.models import ModelEntry

from .requests import InfillRequest

MARGIN = 16
"""Tokens that a model puts around the text."""
DEFAULT_TOKENS = 256
"""Of a completion that names no number."""
OF_PREFIX = 0.75
"""The prefix's part of the room."""


async def cut(ml: MLClient, asked: InfillRequest, timeout_s: float) -> InfillRequest:
    """The request with the end of its prefix and the beginning of its suffix, which fit. Raises NotFound, TooLarge."""
    entry = await served(ml, asked.model)
    made = asked.n_predict if asked.n_predict >= 0 else DEFAULT_TOKENS
    room = (entry.max_tokens or 0) - made - MARGIN
    if room < 1:
        raise TooLarge(f"field 'n_predict': {made} tokens leave no room for a text in the context of {entry.id!r}")
    texts = [asked.input_prefix + asked.prompt, asked.input_suffix]
    reply = await ml.tokenize(texts, model=entry.id, add_special_tokens=False, timeout_s=timeout_s)
    prefix, suffix = (found.offsets or [] for found in reply.results or [])
    of_prefix = max(int(room * OF_PREFIX), room - len(suffix))
    before = [start for start, _ in prefix][-of_prefix:] if of_prefix else []
    behind = [stop for _, stop in suffix][: room - len(before)]
    return asked.model_copy(
        update={
            "input_prefix": texts[0].encode()[before[0] :].decode() if before else "",
            "prompt": "",
            "input_suffix": texts[1].encode()[: behind[-1]].decode() if behind else "",
        }
    )


async def served(ml: MLClient, model: str | None) -> ModelEntry:
    """The model, or the default one to fill in the middle, or for prompts. Raises NotFound."""
    found = (await ml.models.list(kind="generation")).models
    if model:
        entry = next((entry for entry in found if entry.id == model), None)
    else:
        default_of = {form: entry for entry in found for form in entry.default_for}
        entry = default_of.get("fim") or default_of.get("prompt")
    if entry is None:
        raise NotFound(f"there is no model {model[:64]!r} that generates" if model else "no model here generates")
    return entry
