"""The paths of text-embeddings-inference, but for /tokenize and /health, which are among llama.cpp's."""

from importlib.metadata import version

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from ...settings.gateway import HttpSettings
from ..answers import answer, with_vectors
from ..body import read_json, timeout_s
from ..bus import Bus
from ..fields import accepted
from ..openai.requests import MAX_INPUTS
from ..streams import leaving_cancels
from .requests import TeiEmbedRequest, TeiSimilarityRequest
from .tokens import default_entry


def add_routes(app: FastAPI, bus: Bus, settings: HttpSettings) -> None:
    """Vectors, cosines and what serves them."""
    api = _Api(bus, settings)
    app.add_api_route("/embed", api.embed, methods=["POST"])
    app.add_api_route("/similarity", api.similarity, methods=["POST"])
    app.add_api_route("/info", api.info, methods=["GET"])


class _Api:
    def __init__(self, bus: Bus, settings: HttpSettings) -> None:
        self._bus = bus
        self._settings = settings

    async def embed(self, request: Request) -> Response:
        asked = accepted(await read_json(request, self._settings), TeiEmbedRequest)
        async with leaving_cancels(request.receive):
            reply = await self._bus.ml.embed_batch(
                asked.inputs,
                model=asked.model,
                dimensions=asked.dimensions,
                normalize=asked.normalize,
                prompt_name=asked.prompt_name,
                truncate=asked.end,
                timeout_s=timeout_s(request, self._settings),
            )
        return await with_vectors(reply.embeddings, reply)

    async def similarity(self, request: Request) -> Response:
        """The cosines in the order of the sentences."""
        asked = accepted(await read_json(request, self._settings), TeiSimilarityRequest)
        async with leaving_cancels(request.receive):
            ranking = await self._bus.ml.rank(
                asked.inputs.source_sentence,
                asked.inputs.sentences,
                model=asked.model,
                prompt_name=asked.parameters.prompt_name,
                truncate=asked.parameters.end,
                timeout_s=timeout_s(request, self._settings),
            )
        return answer([one.score for one in sorted(ranking.results, key=lambda one: one.index)])

    async def info(self) -> Response:
        """Of the model that embeds where none is named. model_type: without the pooling, which no worker tells."""
        entry = await default_entry(self._bus.ml)
        return answer(
            {
                "model_id": entry.repository or entry.id,
                "model_sha": entry.revision,
                "model_dtype": entry.loaded.dtype if entry.loaded else "",
                "model_type": {"embedding": {}},
                "max_concurrent_requests": self._settings.requests,
                "max_input_length": entry.max_tokens,
                "max_client_batch_size": MAX_INPUTS,
                "auto_truncate": True,
                "version": version("mlbus"),
            }
        )
