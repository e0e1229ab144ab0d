"""The models that the settings name: loaded at the start, and again later where one cannot be had then."""

import asyncio
from contextlib import suppress

import structlog

from models.errors import DeviceFailed, ModelError, OverBudget

from .config import Settings
from .residency import Residency

log = structlog.get_logger(__name__)

RETRY_S = 30.0
"""How long after the start a missing model is tried again; each time twice as long, up to LONGEST_S."""
LONGEST_S = 600.0


async def load_first(residency: Residency, settings: Settings) -> None:
    """Load them, none at the cost of another. Those that cannot be had are `residency.missing` from then on.

    Raises ModelError where none can be had; where the settings are strict, for the first.
    """
    named = dict.fromkeys((*settings.models, *settings.memory.pinned))
    for model in named:
        try:
            await residency.load(model, pin=True)
        except DeviceFailed:
            raise
        except ModelError as error:
            if settings.strict:
                raise
            residency.missing[model] = error
            log.warning("model.missing", model=model, reason=str(error))
    if named.keys() <= residency.missing.keys():
        raise next(iter(residency.missing.values()))
    if not settings.models_are_chosen:
        await _serve_prompts_otherwise(residency)
    for resident in list(residency.registry):
        await residency.load(resident.model, pin=resident.model in settings.memory.pinned)


async def _serve_prompts_otherwise(residency: Residency) -> None:
    """Where the default for prompts is missing, and nobody chose it, the next one serves them.

    Not so for vectors: those of two models do not mix.
    """
    model = residency.defaults["prompt"]
    instead = residency.catalogue.default("prompt", without=model)
    if model not in residency.missing or instead is None:
        return
    log.warning("model.replaced", model=model, prompts_are_served_by=instead.id)
    residency.defaults["prompt"] = instead.id
    with suppress(ModelError):  # a request then says why
        await residency.load(instead.id, pin=True)


async def retry_missing(residency: Residency, settings: Settings) -> None:
    """Try to load what is missing, until nothing is; what did not fit beside the others comes when it is asked for."""
    pause_s = RETRY_S
    while residency.missing:
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_S)
        for model in [model for model, error in residency.missing.items() if not isinstance(error, OverBudget)]:
            try:
                await residency.load(model, pin=model in settings.memory.pinned)
            except ModelError as error:
                residency.missing[model] = error
