"""The paths of the APIs that editors speak, and what they are asked with: for the documents."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .fields import Ignored, Neutral
from .llamacpp import fields as llamacpp_fields
from .llamacpp.requests import InfillRequest, LlamaCompletionRequest, LlamaDetokenizeRequest, LlamaTokenizeRequest
from .ollama import fields as ollama_fields
from .ollama.requests import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from .tei.requests import TeiEmbedRequest, TeiSimilarityRequest, TeiTokenizeRequest


@dataclass(frozen=True, slots=True)
class Path:
    """request: of one that is posted; None: GET. streams: the content type of a stream."""

    summary: str
    request: Any = None
    streams: str | None = None


@dataclass(frozen=True, slots=True)
class Api:
    """error: the schema of its errors. ignored, neutral: its fields without effect."""

    name: str
    error: dict[str, Any]
    paths: Mapping[str, Path]
    ignored: Ignored
    neutral: Neutral


_EVENTS, _LINES = "text/event-stream", "application/x-ndjson"
_TEXT = {"type": "string"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


LLAMACPP = Api(
    "llama.cpp",
    _object(error=_object(code={"type": "integer"}, message=_TEXT, type=_TEXT)),
    {
        "/infill": Path("Fill a gap", InfillRequest, _EVENTS),
        "/completion": Path("Continue a text", LlamaCompletionRequest, _EVENTS),
        "/tokenize": Path(
            "The tokens of a text; with `inputs`, as text-embeddings-inference",
            LlamaTokenizeRequest | TeiTokenizeRequest,
        ),
        "/detokenize": Path("The text of tokens", LlamaDetokenizeRequest),
        "/props": Path("What serves"),
        "/health": Path("Whether a worker answers; text-embeddings-inference's too"),
    },
    llamacpp_fields.IGNORED,
    llamacpp_fields.NEUTRAL,
)
OLLAMA = Api(
    "Ollama",
    _object(error=_TEXT),
    {
        "/api/generate": Path("Continue a text, or fill a gap in it", OllamaGenerateRequest, _LINES),
        "/api/chat": Path("Answer a chat", OllamaChatRequest, _LINES),
        "/api/embed": Path("Vectors of texts", OllamaEmbedRequest),
        "/api/embeddings": Path("The vector of a text", OllamaEmbeddingsRequest),
        "/api/tags": Path("The models whose weights are there"),
        "/api/show": Path("One model", OllamaShowRequest),
        "/api/ps": Path("The models in memory"),
        "/api/version": Path("The version of Ollama whose API this is"),
    },
    {
        **ollama_fields.IGNORED,
        **{f"options.{name}": meaning for name, meaning in ollama_fields.OF_OPTIONS_IGNORED.items()},
        **{f"messages.{name}": meaning for name, meaning in ollama_fields.OF_MESSAGES_IGNORED.items()},
    },
    {
        **ollama_fields.NEUTRAL,
        **{f"options.{name}": values for name, values in ollama_fields.OF_OPTIONS_NEUTRAL.items()},
        **{f"messages.{name}": values for name, values in ollama_fields.OF_MESSAGES_NEUTRAL.items()},
    },
)
TEI = Api(
    "text-embeddings-inference",
    _object(error=_TEXT, error_type=_TEXT),
    {
        "/embed": Path("Vectors of texts", TeiEmbedRequest),
        "/similarity": Path("The cosines of a sentence and others", TeiSimilarityRequest),
        "/info": Path("What embeds where no model is named"),
    },
    {},
    {},
)
APIS = (LLAMACPP, OLLAMA, TEI)


def paths() -> Iterator[tuple[Api, str, Path]]:
    """All of them."""
    for api in APIS:
        for path, told in api.paths.items():
            yield api, path, told
