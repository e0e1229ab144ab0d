"""Frames of the wire contract as the answers of Ollama: whole, and as lines of a stream."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import orjson

from subjects import GenerateDone, TokenFrame
from subjects.errors import Cancelled, MLError
from subjects.models import ModelEntry

from ..forms import OLLAMA
from ..streams import EventStream
from .requests import OllamaChatRequest, OllamaGenerateRequest

Fields = dict[str, Any]
Asked = OllamaGenerateRequest | OllamaChatRequest
Frames = AsyncGenerator[TokenFrame | GenerateDone, None]


class Lines(EventStream):
    """A line of JSON for each piece."""

    media_type = "application/x-ndjson"


def line(fields: Fields) -> bytes:
    return orjson.dumps(fields) + b"\n"


def last_line(error: MLError) -> bytes:
    return line(OLLAMA.of(error)[0])


def now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def piece(asked: Asked, text: str) -> Fields:
    """More text. The last one has more fields."""
    told: Fields = {"model": asked.model, "created_at": now()}
    if isinstance(asked, OllamaChatRequest):
        return {**told, "message": {"role": "assistant", "content": text}, "done": False}
    return {**told, "response": text, "done": False}


def loaded(asked: Asked) -> Fields:
    """The answer to a request that has the model loaded."""
    return {**piece(asked, ""), "done": True, "done_reason": "load"}


async def lines(asked: Asked, frames: Frames) -> AsyncGenerator[bytes, None]:
    """The stream. Closing it closes that of the frames."""
    async with aclosing(_pieces(asked, frames)) as pieces:
        async for told in pieces:
            yield line(told)


async def whole(asked: Asked, frames: Frames) -> Fields:
    """The answer to a request that does not stream."""
    texts: list[str] = []
    told: Fields = {}
    async with aclosing(_pieces(asked, frames)) as pieces:
        async for told in pieces:
            texts.append(told["response"] if "response" in told else told["message"]["content"])
    return {**told, **piece(asked, "".join(texts)), "done": True}


async def _pieces(asked: Asked, frames: Frames) -> AsyncGenerator[Fields, None]:
    began, first = time.perf_counter_ns(), 0
    async with aclosing(frames):
        async for frame in frames:
            first = first or time.perf_counter_ns()
            if isinstance(frame, GenerateDone):
                yield {**piece(asked, ""), "done": True, **_end(frame, began, first)}
            elif asked.options.num_predict != 0:
                yield piece(asked, frame.text)


def _end(done: GenerateDone, began: int, first: int) -> Fields:
    """How it ended. Durations are in nanoseconds, as the gateway sees them: the prompt takes until the first text."""
    if done.finish_reason == "cancelled":
        raise Cancelled("the completion was cancelled at the worker")
    ended = time.perf_counter_ns()
    return {
        "done_reason": "stop" if done.finish_reason == "stop" else "length",
        "total_duration": ended - began,
        "load_duration": 0,
        "prompt_eval_count": done.usage.prompt_tokens,
        "prompt_eval_duration": first - began,
        "eval_count": done.usage.completion_tokens,
        "eval_duration": ended - first,
    }


def listed(entry: ModelEntry, modified_at: str) -> Fields:
    """A model in a list. modified_at: no worker tells, and clients want one."""
    return {
        "name": entry.id,
        "model": entry.id,
        "modified_at": modified_at,
        "size": entry.loaded.memory_bytes if entry.loaded else int((entry.size_gb or 0) * 1e9),
        "digest": entry.revision or "",
        "details": details(entry),
    }


def running(entry: ModelEntry, modified_at: str) -> Fields:
    """A model in memory."""
    assert entry.loaded is not None
    return {
        **{name: value for name, value in listed(entry, modified_at).items() if name != "modified_at"},
        "size_vram": 0 if entry.loaded.device == "cpu" else entry.loaded.memory_bytes,
        "context_length": entry.max_tokens or 0,
        "expires_at": NEVER,
    }


NEVER = "2318-01-01T00:00:00Z"
"""When a model leaves memory: not at a known time."""


def details(entry: ModelEntry) -> Fields:
    precision = (entry.loaded.quantization or entry.loaded.dtype) if entry.loaded else ""
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": entry.kind,
        "families": [entry.kind],
        "parameter_size": "",
        "quantization_level": precision,
    }


_CAPABILITIES = {"embedding": "embedding", "prompt": "completion", "fim": "insert"}


def shown(entry: ModelEntry, modified_at: str) -> Fields:
    """A model's details. template: not the model's own; clients look in it for what the model can do."""
    info: Fields = {"general.architecture": entry.kind}
    if entry.max_tokens:
        info[f"{entry.kind}.context_length"] = entry.max_tokens
    if entry.dimensions:
        info[f"{entry.kind}.embedding_length"] = entry.dimensions
    return {
        "license": entry.licence or "",
        "modelfile": "",
        "parameters": "",
        "template": "{{ .Prompt }}{{ .Suffix }}" if "fim" in entry.forms else "{{ .Prompt }}",
        "details": details(entry),
        "model_info": info,
        "capabilities": [name for form, name in _CAPABILITIES.items() if form in entry.forms],
        "modified_at": modified_at,
    }
