"""The model manager of a worker, made from its settings."""

from collections.abc import Callable
from typing import cast

import structlog

from models.catalogue import Catalogue
from models.encoders.base import Encoder

from ..embedding.embedder import Embedder
from ..embedding.pending_text import BatchLimits
from ..generation.generator import Generator
from ..runtime.device_thread import DeviceThread
from ..served_model import Model, ServedModel, generates
from ..settings import Settings
from ..telemetry import Telemetry
from .loader import ModelLoader
from .manager import ModelManager

log = structlog.get_logger(__name__)

BUDGET_TOKENS = {"cpu": 1024, "cuda": 16384}
OVERHEAD_TOKENS = {"cpu": 32, "cuda": 256}


def model_manager(
    catalogue: Catalogue,
    settings: Settings,
    loader: ModelLoader,
    device: DeviceThread,
    telemetry: Telemetry,
    on_died: Callable[[BaseException], None],
) -> ModelManager:
    """The models of a worker, none loaded yet; all of them share the device's thread."""

    def serving(model: Model) -> ServedModel:
        if generates(model):
            generation = settings.generation
            return Generator(model, device, telemetry.generation, generation.max_running, generation.stuck_step_s)
        encoder = cast(Encoder, model)
        return Embedder(encoder, device, _batch_limits(settings, encoder.device), telemetry)

    def died(error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        log.error("model.died", exc_info=error)
        on_died(error)

    return ModelManager(catalogue, loader, serving, catalogue.defaults(settings.chosen_models), died, settings.memory)


def _batch_limits(settings: Settings, device: str) -> BatchLimits:
    kind = device.partition(":")[0]
    batch, limits = settings.batch, settings.limits
    return BatchLimits(
        budget_tokens=batch.budget_tokens or BUDGET_TOKENS[kind],
        overhead_tokens=OVERHEAD_TOKENS[kind] if batch.overhead_tokens is None else batch.overhead_tokens,
        queue_texts=limits.queue_texts,
        queue_tokens=limits.queue_tokens,
    )
