"""The paths of llama.cpp's server."""

from importlib.metadata import version
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from subjects.errors import MLError, TooLarge, Unavailable

from ...settings.gateway import HttpSettings
from ..answers import answer
from ..body import read_json, timeout_s
from ..bus import Bus
from ..fields import accepted
from ..forms import LLAMACPP
from ..streams import EventStream, event, leaving_cancels, with_first
from ..tei.tokens import tokenized
from .cutting import cut, served
from .fields import IGNORED, NEUTRAL
from .replies import Asked, events, whole
from .requests import InfillRequest, LlamaCompletionRequest, LlamaDetokenizeRequest, LlamaTokenizeRequest


def add_routes(app: FastAPI, bus: Bus, settings: HttpSettings) -> None:
    """Completions, gaps, tokens, properties and health."""
    api = _Api(bus, settings)
    app.add_api_route("/completion", api.completion, methods=["POST"])
    app.add_api_route("/infill", api.infill, methods=["POST"])
    app.add_api_route("/tokenize", api.tokenize, methods=["POST"])
    app.add_api_route("/detokenize", api.detokenize, methods=["POST"])
    app.add_api_route("/props", api.props, methods=["GET"])
    app.add_api_route("/health", api.health, methods=["GET"])


class _Api:
    def __init__(self, bus: Bus, settings: HttpSettings) -> None:
        self._bus = bus
        self._settings = settings

    async def completion(self, request: Request) -> Response:
        asked = accepted(await read_json(request, self._settings), LlamaCompletionRequest, IGNORED, NEUTRAL)
        ml, options = self._bus.ml, self._options(request, asked)
        if asked.number > 1:
            return await self._generated(request, asked, ml.stream_batch(asked.prompts, **options))
        return await self._generated(request, asked, ml.stream(**asked.form(), **options))

    async def infill(self, request: Request) -> Response:
        asked = accepted(await read_json(request, self._settings), InfillRequest, IGNORED, NEUTRAL)
        if asked.warms_up and asked.is_empty:
            return answer({"content": "", "stop": True})
        try:
            return await self._filled(request, asked)
        except TooLarge:
            return await self._filled(request, await cut(self._bus.ml, asked, timeout_s(request, self._settings)))

    async def _filled(self, request: Request, asked: InfillRequest) -> Response:
        frames = self._bus.ml.stream(**asked.form(), **self._options(request, asked))
        return await self._generated(request, asked, frames)

    def _options(self, request: Request, asked: Asked) -> dict[str, Any]:
        return asked.options() | {"timeout_s": timeout_s(request, self._settings)}

    async def _generated(self, request: Request, asked: Asked, frames: Any) -> Response:
        if asked.stream:
            sent = await with_first(events(asked, frames), request.receive)
            return EventStream(sent, _last_event, self._settings.write_timeout_s)
        async with leaving_cancels(request.receive):
            return answer(await whole(asked, frames))

    async def tokenize(self, request: Request) -> Response:
        """This path is text-embeddings-inference's too: a body with `inputs` is for that API."""
        fields = await read_json(request, self._settings)
        if "inputs" in fields:
            return await tokenized(self._bus.ml, fields, timeout_s(request, self._settings))
        asked = accepted(fields, LlamaTokenizeRequest, IGNORED, NEUTRAL)
        reply = await self._bus.ml.tokenize(
            asked.content,
            model=asked.model,
            add_special_tokens=asked.add_special,
            timeout_s=timeout_s(request, self._settings),
        )
        (found,) = reply.results or []
        if not asked.with_pieces:
            return answer({"tokens": found.ids})
        pieces = zip(found.ids, found.pieces, strict=True)
        return answer({"tokens": [{"id": token, "piece": piece} for token, piece in pieces]})

    async def detokenize(self, request: Request) -> Response:
        asked = accepted(await read_json(request, self._settings), LlamaDetokenizeRequest, IGNORED, NEUTRAL)
        if not asked.tokens:
            return answer({"content": ""})
        limit_s = timeout_s(request, self._settings)
        reply = await self._bus.ml.detokenize(
            asked.tokens, model=asked.model, skip_special_tokens=False, timeout_s=limit_s
        )
        return answer({"content": reply.texts[0]})

    async def props(self, model: str | None = None) -> Response:
        """Of the model, or of the default one to fill in the middle, or for prompts."""
        entry = await served(self._bus.ml, model)
        settings = {"n_ctx": entry.max_tokens} if entry.max_tokens else {}
        return answer(
            {
                "default_generation_settings": settings,
                "model_alias": entry.id,
                "model_path": entry.repository or entry.id,
                "modalities": {"vision": False, "audio": False},
                "build_info": f"mlbus {version('mlbus')}",
            }
        )

    async def health(self) -> Response:
        """text-embeddings-inference has this path too; its clients read the status alone."""
        if fault := await self._bus.fault():
            raise Unavailable(fault)
        return answer({"status": "ok"})


def _last_event(error: MLError) -> bytes:
    return event(orjson.dumps(LLAMACPP.of(error)[0]))
