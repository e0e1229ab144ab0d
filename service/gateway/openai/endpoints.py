"""The paths of OpenAI's API."""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from subjects import EmbedBatchReply, GenerateDone, MLClient, TokenFrame
from subjects.errors import NotFound
from subjects.models import ModelEntry
from subjects.vectors import little_endian

from ...settings.gateway import HttpSettings
from .. import errors
from ..answers import LARGE_VALUES, answer
from ..body import read_json, timeout_s
from ..bus import Bus
from ..streams import EventStream, event, leaving_cancels, with_first
from .fields import accepted
from .fill import gap_in
from .replies import Chats, Completions, Form, chunks, whole
from .requests import ChatRequest, CompletionRequest, EmbeddingsRequest

Frames = AsyncGenerator[TokenFrame | GenerateDone, None]


def add_routes(app: FastAPI, bus: Bus, settings: HttpSettings) -> None:
    """Models, embeddings, completions and chats."""
    api = _Api(bus, settings)
    app.add_api_route("/v1/models", api.models, methods=["GET"])
    app.add_api_route("/v1/models/{model}", api.model, methods=["GET"])
    app.add_api_route("/v1/embeddings", api.embeddings, methods=["POST"])
    app.add_api_route("/v1/completions", api.completions, methods=["POST"])
    app.add_api_route("/v1/chat/completions", api.chat, methods=["POST"])


class _Api:
    def __init__(self, bus: Bus, settings: HttpSettings) -> None:
        self._bus = bus
        self._settings = settings
        self._started = int(time.time())

    async def models(self) -> Response:
        """The models of the worker that answers whose weights it has."""
        found = await self._bus.ml.models.list()
        return answer({"object": "list", "data": [self._model(entry) for entry in found.models if entry.present]})

    async def model(self, model: str) -> Response:
        found = await self._bus.ml.models.list()
        entry = next((entry for entry in found.models if entry.id == model and entry.present), None)
        if entry is None:
            raise NotFound(f"there is no model {model[:64]!r}; /v1/models lists those that there are")
        return answer(self._model(entry))

    def _model(self, entry: ModelEntry) -> dict[str, Any]:
        owner = (entry.repository or "mlbus").partition("/")[0]
        return {"id": entry.id, "object": "model", "created": self._started, "owned_by": owner}

    async def embeddings(self, request: Request) -> Response:
        asked = accepted(await read_json(request, self._settings), EmbeddingsRequest)
        async with leaving_cancels(request.receive):
            reply = await self._bus.ml.embed_batch(
                asked.input,
                model=asked.model,
                dimensions=asked.dimensions,
                timeout_s=timeout_s(request, self._settings),
            )
        if len(reply.embeddings) * reply.dimensions > LARGE_VALUES:
            return await asyncio.to_thread(_embedded, reply, asked.encoding_format)
        return _embedded(reply, asked.encoding_format)

    async def completions(self, request: Request) -> Response:
        asked = accepted(await read_json(request, self._settings), CompletionRequest)
        options = asked.options() | {"timeout_s": timeout_s(request, self._settings)}
        ml = self._bus.ml
        if len(asked.prompts) > 1:
            work = ml.stream_batch if asked.stream else ml.generate_batch
            return await self._generated(request, Completions(), asked, work(asked.prompts, **options))
        return await self._generated(request, Completions(), asked, _generate(ml, asked, options | _form(asked)))

    async def chat(self, request: Request) -> Response:
        asked = accepted(await read_json(request, self._settings), ChatRequest)
        options = asked.options() | {"timeout_s": timeout_s(request, self._settings), "messages": asked.turns()}
        return await self._generated(request, Chats(), asked, _generate(self._bus.ml, asked, options))

    async def _generated(
        self, request: Request, form: Form, asked: CompletionRequest | ChatRequest, work: Any
    ) -> Response:
        """work: frames if a stream was asked for, or else the one reply that comes."""
        if asked.stream:
            events = await with_first(chunks(form, asked, work), request.receive)
            return EventStream(events, _last_event, self._settings.write_timeout_s)
        async with leaving_cancels(request.receive):
            return answer(whole(form, await work))


def _generate(ml: MLClient, asked: CompletionRequest | ChatRequest, options: dict[str, Any]) -> Any:
    return ml.stream(**options) if asked.stream else ml.generate(**options)


def _form(asked: CompletionRequest) -> dict[str, Any]:
    """One prompt, or the texts around a gap."""
    (prompt,) = asked.prompts
    if asked.suffix:
        return {"prefix": prompt, "suffix": asked.suffix}
    gap = gap_in(prompt) if isinstance(prompt, str) else None
    return {"prefix": gap[0], "suffix": gap[1]} if gap else {"prompt": prompt}


def _embedded(reply: EmbedBatchReply, encoding_format: str) -> Response:
    """truncated: the places of the texts that were cut to the model's length; not OpenAI's."""
    vectors: list[Any] = reply.embeddings
    if encoding_format == "base64":
        vectors = [base64.b64encode(little_endian(vector)).decode() for vector in vectors]
    data = [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(vectors)]
    tokens = reply.usage.tokens
    fields = {"object": "list", "data": data, "model": reply.model, "truncated": reply.truncated}
    return answer({**fields, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})


def _last_event(error: Any) -> bytes:
    return event(orjson.dumps(errors.openai_body(error)))
