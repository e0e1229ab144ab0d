"""What is in memory, as discovery, statistics and metrics tell it."""

import functools
import json
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgpack

from models.catalogue import Form
from models.registry import Registry

from ..embedding.batcher import Batcher
from ..embedding.embedder import Embedder
from ..generation.generator import Generator
from .served import Served

Residents: TypeAlias = Registry[Served]

REASON_CHARS = 300
_MODEL = (b'"model"', b"\xa5model")
"""A body's key for the model, in JSON and in MessagePack."""
DEFAULTS: Mapping[Form, str] = {
    "embedding": "default_model",
    "prompt": "default_generation_model",
    "messages": "default_chat_model",
    "fim": "default_fim_model",
}
DOING = ("running", "waiting", "waiting_tokens", "kv_used_bytes", "kv_bytes", "preempted")


def queued(residents: Residents) -> tuple[int, int]:
    """Texts and tokens that wait or run, over all embedding models."""
    batchers = _batchers(residents)
    return sum(batcher.queued_texts for batcher in batchers), sum(batcher.queued_tokens for batcher in batchers)


def ready_in_s(residents: Residents, body: bytes, default: str | None, source: str | None = None) -> float:
    """When a request to embed would be answered, going by its body that nobody has read.

    default: the model that serves those which name none; source: who takes turns with others. 0 where the body may mean
    another model that is not in memory.
    """
    batchers = _batchers(residents)
    if places := [at for key in _MODEL if (at := body.find(key)) >= 0]:
        named = {batcher: _naming(batcher.encoder.model) for batcher in batchers}
        asked = [batcher for batcher, naming in named.items() if any(naming.match(body, at) for at in places)]
    else:
        asked = [batcher for batcher in batchers if batcher.encoder.model == default]
    return min((batcher.ready_in_s(len(body), source) for batcher in asked), default=0.0)


@functools.cache
def _naming(model: str) -> re.Pattern[bytes]:
    """What a body has, in JSON or MessagePack, that names a model."""
    in_json, in_msgpack = re.escape(json.dumps(model).encode()), re.escape(msgpack.packb(model))
    return re.compile(rb"%b\s*:\s*%b|%b%b" % (_MODEL[0], in_json, _MODEL[1], in_msgpack))


def generating(residents: Residents) -> dict[str, int]:
    """What all engines do, by the names of EngineLoad's fields; what they have done, telemetry counts."""
    loads = [generator.engine.load for generator in _generators(residents)]
    return {name: sum(getattr(load, name) for load in loads) for name in DOING}


def memory_bytes(residents: Residents) -> int:
    """What all models take, over all devices."""
    return sum(resident.memory_bytes for resident in residents.everything())


def described(residents: Residents, defaults: Mapping[Form, str], missing: Mapping[str, Exception]) -> dict[str, str]:
    """What takes requests, in which version and where, and which of them those that name none; what is missing and why.

    Reasons are cut: INFO stays small.
    """
    return {
        "models": ",".join(resident.model for resident in residents),
        **{DEFAULTS[form]: model for form, model in defaults.items()},
        **{f"model.{resident.model}": f"{resident.version} on {resident.device}" for resident in residents},
        **{f"missing.{model}": textwrap.shorten(str(error), REASON_CHARS) for model, error in missing.items()},
    }


def _stuck_s(residents: Residents) -> float:
    return max((generator.stuck_s for generator in _generators(residents)), default=0.0)


def _batchers(residents: Residents) -> list[Batcher]:
    return [served.batcher for served in _serving(residents) if isinstance(served, Embedder)]


def _generators(residents: Residents) -> list[Generator]:
    return [served for served in _serving(residents) if isinstance(served, Generator)]


def _serving(residents: Residents) -> list[Served]:
    return [resident.serves for resident in residents.everything()]


GAUGES: Mapping[str, tuple[str, Callable[[Residents], float]]] = {
    "queued_texts": ("Texts that wait or run", lambda residents: queued(residents)[0]),
    "queued_tokens": ("Tokens of the texts that wait or run", lambda residents: queued(residents)[1]),
    "models_loaded": ("Models in memory that accept requests", lambda residents: len(list(residents))),
    "model_memory_bytes": ("Memory of all models, including those about to be unloaded", memory_bytes),
    "generate_running": ("Completions being generated", lambda residents: generating(residents)["running"]),
    "generate_waiting": ("Completions waiting", lambda residents: generating(residents)["waiting"]),
    "generate_waiting_tokens": (
        "Prompt tokens of waiting completions",
        lambda residents: generating(residents)["waiting_tokens"],
    ),
    "generate_kv_used_bytes": ("KV cache that is in use", lambda residents: generating(residents)["kv_used_bytes"]),
    "generate_kv_bytes": ("Size of the KV caches", lambda residents: generating(residents)["kv_bytes"]),
    "generate_preempted": (
        "Completions preempted from a full KV cache, to be recomputed",
        lambda residents: generating(residents)["preempted"],
    ),
    "generate_stuck_seconds": (
        "Time that a step has taken so far, once it exceeds generation.stuck_step_s; else 0",
        _stuck_s,
    ),
}
"""For the metrics: name -> meaning, and how it is looked up."""
