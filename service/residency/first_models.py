"""The models that the settings name: loaded at the start; missing ones are tried again later."""

import asyncio
from contextlib import suppress

import structlog

from models.catalogue import Catalogue
from models.errors import DeviceFailed, ModelError, ModelUnavailable, OverBudget
from models.weights import hub

from ..settings import Settings
from .manager import ModelManager

log = structlog.get_logger(__name__)

RETRY_S = 30.0
"""When a missing model is tried again after the start; the pause doubles each time, up to LONGEST_S."""
LONGEST_S = 600.0


def first_models(catalogue: Catalogue, settings: Settings) -> list[str]:
    """The models to load at the start: those that the settings name, else the catalogue's defaults; and those pinned.

    Raises UnknownModel.
    """
    pinned = [catalogue.get(model).id for model in settings.memory.pinned]
    named = [catalogue.get(model).id for model in settings.chosen_models] or catalogue.usual()
    return list(dict.fromkeys((*named, *pinned)))


async def load_first(manager: ModelManager, settings: Settings) -> None:
    """Load them, none at the cost of another. Those that cannot be had are `manager.missing` from then on.

    Raises ModelError where none can be had; where the settings are strict, for the first.
    """
    named = first_models(manager.catalogue, settings)
    for model in named:
        try:
            await _require_here(manager, settings, model)
            await manager.load(model, pin=True)
        except DeviceFailed:
            raise
        except ModelError as error:
            if settings.strict:
                raise
            manager.missing[model] = error
            log.warning("model.missing", model=model, reason=str(error))
    if manager.missing.keys() >= set(named):
        raise next(iter(manager.missing.values()))
    if not settings.chosen_models:
        await _serve_prompts_otherwise(manager)
    for loaded in list(manager.registry):
        await manager.load(loaded.model, pin=loaded.model in settings.memory.pinned)


async def _require_here(manager: ModelManager, settings: Settings, model: str) -> None:
    """The default for prompts is not worth a download: another model can take its place. Raises ModelUnavailable."""
    if model in (*settings.chosen_models, *settings.memory.pinned) or model != manager.defaults.get("prompt"):
        return
    if not await asyncio.to_thread(hub.is_present, manager.catalogue.get(model)):
        raise ModelUnavailable(model, f"its weights are not on this machine; fetch them: mlbus models pull {model}")


async def _serve_prompts_otherwise(manager: ModelManager) -> None:
    """If the default for prompts is missing, have the next one serve them.

    Not for vectors: those of two models do not mix.
    """
    model = manager.defaults.get("prompt", "")
    instead = manager.catalogue.default("prompt", without=model)
    if model not in manager.missing or instead is None:
        return
    log.warning("model.replaced", model=model, prompts_are_served_by=instead.id)
    manager.defaults["prompt"] = instead.id
    with suppress(ModelError):  # a request then gets the error
        await manager.load(instead.id, pin=True)


async def retry_missing(manager: ModelManager, settings: Settings) -> None:
    """Try to load what is missing, until nothing is. Models that do not fit the memory are loaded on request."""
    pause_s = RETRY_S
    while manager.missing:
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_S)
        for model in [model for model, error in manager.missing.items() if not isinstance(error, OverBudget)]:
            try:
                await manager.load(model, pin=model in settings.memory.pinned)
            except ModelError as error:
                manager.missing[model] = error
