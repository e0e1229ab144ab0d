"""The paths of Ollama."""

import time
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from subjects.errors import Forbidden, InvalidField
from subjects.models import ModelEntry

from ...settings.gateway import HttpSettings
from ..answers import answer, with_vectors
from ..body import read_json, timeout_s
from ..bus import Bus
from ..streams import leaving_cancels, with_first
from . import replies
from .fields import accepted
from .requests import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)

VERSION = "0.12.0"
"""Of the Ollama whose API this is; clients compare it with what they need."""


def add_routes(app: FastAPI, bus: Bus, settings: HttpSettings) -> None:
    """Texts, chats, vectors and models."""
    api = _Api(bus, settings)
    app.add_api_route("/api/generate", api.generate, methods=["POST"])
    app.add_api_route("/api/chat", api.chat, methods=["POST"])
    app.add_api_route("/api/embed", api.embed, methods=["POST"])
    app.add_api_route("/api/embeddings", api.embeddings, methods=["POST"])
    app.add_api_route("/api/show", api.show, methods=["POST"])
    app.add_api_route("/api/tags", api.tags, methods=["GET"])
    app.add_api_route("/api/ps", api.ps, methods=["GET"])
    app.add_api_route("/api/version", api.version, methods=["GET"])


class _Api:
    def __init__(self, bus: Bus, settings: HttpSettings) -> None:
        self._bus = bus
        self._settings = settings
        self._started = replies.now()

    async def generate(self, request: Request) -> Response:
        asked = accepted(await read_json(request, self._settings), OllamaGenerateRequest)
        chats = asked.may_chat and "messages" in (await self._entry(asked.model)).forms
        return await self._generated(request, asked, asked.form(chats))

    async def chat(self, request: Request) -> Response:
        asked = accepted(await read_json(request, self._settings), OllamaChatRequest)
        return await self._generated(request, asked, asked.form())

    async def _generated(self, request: Request, asked: replies.Asked, form: dict[str, Any]) -> Response:
        limit_s = timeout_s(request, self._settings)
        if asked.only_loads:
            if asked.unloads:
                raise Forbidden("models are unloaded by administrators: mlbus models unload")
            async with leaving_cancels(request.receive):  # whatever needs its tokenizer loads a model
                await self._bus.ml.tokenize("", model=asked.model, count_only=True, timeout_s=limit_s)
            return answer(replies.loaded(asked))
        frames = self._bus.ml.stream(**form, **asked.options.told(), model=asked.model, timeout_s=limit_s)
        if asked.stream:
            lines = await with_first(replies.lines(asked, frames), request.receive)
            return replies.Lines(lines, replies.last_line, self._settings.write_timeout_s)
        async with leaving_cancels(request.receive):
            return answer(await replies.whole(asked, frames))

    async def embed(self, request: Request) -> Response:
        asked = accepted(await read_json(request, self._settings), OllamaEmbedRequest)
        began = time.perf_counter_ns()
        async with leaving_cancels(request.receive):
            reply = await self._bus.ml.embed_batch(
                asked.input,
                model=asked.model,
                dimensions=asked.dimensions,
                normalize=True,
                truncate="end" if asked.truncate else "error",
                timeout_s=timeout_s(request, self._settings),
            )
        told: dict[str, Any] = {"model": asked.model, "embeddings": reply.embeddings}
        told |= {"total_duration": time.perf_counter_ns() - began, "load_duration": 0}
        return await with_vectors({**told, "prompt_eval_count": reply.usage.tokens}, reply)

    async def embeddings(self, request: Request) -> Response:
        asked = accepted(await read_json(request, self._settings), OllamaEmbeddingsRequest)
        limit_s = timeout_s(request, self._settings)
        async with leaving_cancels(request.receive):
            reply = await self._bus.ml.embed(asked.prompt, model=asked.model, timeout_s=limit_s)
        return answer({"embedding": reply.embedding})

    async def show(self, request: Request) -> Response:
        asked = accepted(await read_json(request, self._settings), OllamaShowRequest)
        if not (model := asked.model or asked.name):
            raise InvalidField("field 'model' is missing")
        return answer(replies.shown(await self._entry(model), self._started))

    async def tags(self) -> Response:
        """The models of the worker that answers whose weights it has."""
        found = (await self._bus.ml.models.list()).models
        return answer({"models": [replies.listed(entry, self._started) for entry in found if entry.present]})

    async def ps(self) -> Response:
        """Those in the memory of the worker that answers."""
        found = (await self._bus.ml.models.list()).models
        return answer({"models": [replies.running(entry, self._started) for entry in found if entry.loaded]})

    async def version(self) -> Response:
        return answer({"version": VERSION})

    async def _entry(self, model: str) -> ModelEntry:
        return (await self._bus.ml.models.info(model)).model
