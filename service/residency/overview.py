"""The models in memory and their queues: for discovery, statistics, metrics and admission."""

import functools
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from models.catalogue import Form
from models.registry import Registry

from ..embedding.batcher import Batcher
from ..embedding.embedder import Embedder
from ..endpoint.in_flight import InFlight
from ..generation.generator import Generator
from ..served_model import ServedModel
from .manager import ModelManager

Models: TypeAlias = Registry[ServedModel]

REASON_CHARS = 300
DEFAULTS: Mapping[Form, str] = {
    "embedding": "default_model",
    "prompt": "default_generation_model",
    "messages": "default_chat_model",
    "fim": "default_fim_model",
}
ENGINE_FIGURES = {
    "running": "Completions being generated",
    "waiting": "Completions waiting",
    "waiting_tokens": "Prompt tokens of waiting completions",
    "kv_used_bytes": "KV cache that is in use",
    "kv_bytes": "Size of the KV caches",
    "preempted": "Completions preempted from a full KV cache, to be recomputed",
}
"""Fields of EngineLoad, with their meanings."""


def queued(models: Models) -> tuple[int, int]:
    """Texts and tokens that wait or run, over all embedding models."""
    all_batchers = batchers(models)
    texts = sum(batcher.queued_texts for batcher in all_batchers)
    return texts, sum(batcher.queued_tokens for batcher in all_batchers)


def generating(models: Models) -> dict[str, int]:
    """The present load of all engines, by the names of EngineLoad's fields; telemetry counts what they have done."""
    loads = [generator.engine.load for generator in _generators(models)]
    return {name: sum(getattr(load, name) for load in loads) for name in ENGINE_FIGURES}


def figures(models: Models) -> dict[str, Any]:
    """For $SRV.STATS."""
    texts, tokens = queued(models)
    return {"queued_texts": texts, "queued_tokens": tokens, "generating": generating(models)}


def described(models: Models, defaults: Mapping[Form, str], missing: Mapping[str, Exception]) -> dict[str, str]:
    """The models that take requests, with version and device; the defaults; and why models are missing, shortened."""
    return {
        "models": ",".join(loaded.model for loaded in models),
        **{DEFAULTS[form]: model for form, model in defaults.items()},
        **{f"model.{loaded.model}": f"{loaded.version} on {loaded.device}" for loaded in models},
        **{f"missing.{model}": textwrap.shorten(str(error), REASON_CHARS) for model, error in missing.items()},
    }


def batchers(models: Models) -> list[Batcher]:
    """Of all embedding models."""
    return [loaded.serves.batcher for loaded in models.everything() if isinstance(loaded.serves, Embedder)]


def _generators(models: Models) -> list[Generator]:
    return [loaded.serves for loaded in models.everything() if isinstance(loaded.serves, Generator)]


def read_on_demand(in_flight: InFlight, manager: ModelManager) -> Iterator[tuple[str, str, Callable[[], float]]]:
    """The metrics that are read when somebody asks for them: name, meaning, and how each is read."""
    models = manager.registry
    known: dict[str, tuple[str, Callable[[], float]]] = {
        "requests_in_flight": ("Requests admitted and not yet answered", lambda: len(in_flight.calls)),
        "request_bytes_in_flight": ("Bytes of the bodies of these requests", lambda: in_flight.request_bytes),
        "models_missing": ("Models of the settings that cannot be loaded", lambda: len(manager.missing)),
        "queued_texts": ("Texts that wait or run", lambda: queued(models)[0]),
        "queued_tokens": ("Tokens of the texts that wait or run", lambda: queued(models)[1]),
        "models_loaded": ("Models in memory that accept requests", lambda: len(list(models))),
        "model_memory_bytes": (
            "Memory of all models, including those about to be unloaded",
            lambda: sum(loaded.memory_bytes for loaded in models.everything()),
        ),
        "generate_stuck_seconds": (
            "Time that a step has taken so far, once it exceeds generation.stuck_step_s; else 0",
            lambda: max((generator.stuck_s for generator in _generators(models)), default=0.0),
        ),
    }
    for name, (meaning, read) in known.items():
        yield f"mlbus_{name}", meaning, read
    for name, meaning in ENGINE_FIGURES.items():
        yield f"mlbus_generate_{name}", meaning, functools.partial(_load, models, name)


def _load(models: Models, name: str) -> float:
    return generating(models)[name]
