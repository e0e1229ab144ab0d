"""The OpenAPI 3.1 document of the gateway, made from the messages of the routes."""

import functools
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from subjects import names
from subjects.routes import Route

from . import editors, native
from .openai.requests import ChatRequest, CompletionRequest, EmbeddingsRequest
from .streams import EVENT_STREAM

Schema = dict[str, Any]

_REFERENCE = "#/components/schemas/{model}"
_MODE: JsonSchemaMode = "validation"
_ERRORS: dict[str, Schema] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["code", "message", "retryable", "request_id"],
                "properties": {
                    "code": {"type": "integer"},
                    "message": {"type": "string"},
                    "retryable": {"type": "boolean"},
                    "retry_after_ms": {"type": ["integer", "null"]},
                    "request_id": {"type": "string"},
                },
            }
        },
    },
    "OpenAIError": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            }
        },
    },
}
_HEADERS: dict[str, tuple[str, Schema]] = {
    names.TIMEOUT_MS: ("the time that the answer may take, in milliseconds", {"type": "integer", "minimum": 1}),
    names.REQUEST_ID: ("comes back with the answer", {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$"}),
    names.STREAM: (
        "whether the answer is a stream; auto: where one reply may be too large",
        {"enum": ["true", "auto"]},
    ),
    names.PING_MS: ("after how long without a frame a stream sends a ping", {"type": "integer", "minimum": 100}),
}
OPENAI: Mapping[str, tuple[str, Any]] = {
    "/v1/embeddings": ("Vectors of texts", EmbeddingsRequest),
    "/v1/completions": ("Continue a text, or fill a gap in it", CompletionRequest),
    "/v1/chat/completions": ("Answer a chat", ChatRequest),
}
_PLAIN = {
    "/healthz": "Whether the process runs",
    "/readyz": "Whether a worker answers",
    "/metrics": "Metrics for Prometheus",
}


@functools.cache
def document() -> Schema:
    """The whole document."""
    routes = dict(native.paths())
    asked = [*(route.request for route in routes.values()), *(request for _, request in OPENAI.values())]
    asked += [path.request for _, _, path in editors.paths() if path.request is not None]
    told = [message for route in routes.values() for message in (route.reply, *route.frames.values())]
    schema_of, schemas = _schemas(dict.fromkeys([*asked, *told]))
    paths = {path: {"post": _subject(path, route, schema_of)} for path, route in routes.items()}
    for path, (summary, request) in OPENAI.items():
        paths[path] = {"post": _openai(path, summary, schema_of[request])}
    paths["/v1/models"] = {"get": _openai("/v1/models", "The models whose weights are there")}
    paths["/v1/models/{model}"] = {
        "get": _openai("/v1/models/{model}", "One model") | {"parameters": [_in_path("model")]}
    }
    for api, path, told_of in editors.paths():
        method = "get" if told_of.request is None else "post"
        paths[path] = {method: _of_editors(api, path, told_of, schema_of.get(told_of.request))}
    for path, summary in _PLAIN.items():
        paths[path] = {"get": _plain(path, summary)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlbus", "version": version("mlbus"), "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"schemas": {**schemas, **_ERRORS, **{_error(api): api.error for api in editors.APIS}}},
    }


def _schemas(messages: Iterable[Any]) -> tuple[dict[Any, Schema], dict[str, Schema]]:
    """The schema of each message, which refers to the components that come second."""
    adapters: list[tuple[Any, JsonSchemaMode, TypeAdapter[Any]]] = [
        (message, _MODE, TypeAdapter(message)) for message in messages
    ]
    made, common = TypeAdapter.json_schemas(adapters, ref_template=_REFERENCE)
    return {message: schema for (message, _), schema in made.items()}, common.get("$defs", {})


def _subject(path: str, route: Route, schema_of: Mapping[Any, Schema]) -> Schema:
    """The operation for a subject."""
    in_both = (names.JSON, names.MSGPACK)
    content: dict[str, Schema] = {kind: {"schema": schema_of[route.reply]} for kind in in_both}
    if route.frames:
        frames = [schema_of[frame] for frame in dict.fromkeys(route.frames.values())]
        content[EVENT_STREAM] = {
            "schema": {"type": "string", "description": "Each event's data is a frame.", "x-frames": {"anyOf": frames}}
        }
    if route.lasting:
        content = {EVENT_STREAM: content[EVENT_STREAM]}
    skipped = () if route.frames else (names.STREAM, names.PING_MS)
    parameters = [_header(name) for name in _HEADERS if name not in skipped]
    if native.WORKER in path:
        parameters.append(_in_path("worker"))
    who = " by one worker" if native.WORKER in path else ""
    forbidden = "; for administrators, who ask over NATS: always refused" if route.role == "admin" else ""
    return {
        "operationId": _operation(path),
        "summary": f"{route.subject}{who}{forbidden}",
        "tags": ["Subjects"],
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {kind: {"schema": schema_of[route.request]} for kind in in_both},
        },
        "responses": {"200": {"description": "The reply", "content": content}, "default": _failure("Error")},
    }


def _openai(path: str, summary: str, request: Schema | None = None) -> Schema:
    """The operation for a path of OpenAI's API. request: of one that takes a body."""
    answer: dict[str, Schema] = {names.JSON: {"schema": {"type": "object"}}}
    if request is None:
        body: Schema = {}
    else:
        body = {"requestBody": {"required": True, "content": {names.JSON: {"schema": request}}}}
        body["parameters"] = [_header(names.TIMEOUT_MS)]
        answer[EVENT_STREAM] = {"schema": {"type": "string"}}
    return {
        "operationId": _operation(path),
        "summary": summary,
        "tags": ["OpenAI"],
        **body,
        "responses": {"200": {"description": "As at OpenAI", "content": answer}, "default": _failure("OpenAIError")},
    }


def _of_editors(api: editors.Api, path: str, told: editors.Path, request: Schema | None) -> Schema:
    """The operation for a path of an API that editors speak."""
    body: Schema = {}
    if request is not None:
        body = {"requestBody": {"required": True, "content": {names.JSON: {"schema": request}}}}
        body["parameters"] = [_header(names.TIMEOUT_MS)]
    streamed = {told.streams: {"schema": {"type": "string"}}} if told.streams else {}
    content = {names.JSON: {"schema": {}}, **streamed}
    return {
        "operationId": _operation(path),
        "summary": told.summary,
        "tags": [api.name],
        **body,
        "responses": {
            "200": {"description": f"As {api.name} answers", "content": content},
            "default": _failure(_error(api)),
        },
    }


def _error(api: editors.Api) -> str:
    return f"ErrorOf{api.name.title().replace('.', '').replace('-', '')}"


def _plain(path: str, summary: str) -> Schema:
    content = {"content": {names.TEXT: {"schema": {"type": "string"}}}}
    return {
        "operationId": _operation(path),
        "summary": summary,
        "tags": ["Process"],
        "responses": {
            "200": {"description": "Yes, or the figures", **content},
            "503": {"description": "No, with the reason", **content},
        },
    }


def _failure(name: str) -> Schema:
    schema = {"$ref": _REFERENCE.format(model=name)}
    kinds = (names.JSON, names.MSGPACK) if name == "Error" else (names.JSON,)
    return {"description": "An error", "content": {kind: {"schema": schema} for kind in kinds}}


def _operation(path: str) -> str:
    return path.strip("/").replace("/", "_").replace("{", "of_").replace("}", "")


def _header(name: str) -> Schema:
    meaning, schema = _HEADERS[name]
    return {"name": name, "in": "header", "description": meaning, "schema": schema}


def _in_path(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
