"""Bodies of requests: read with bounds on size and time, and only of content types that no web page sends unasked."""

import asyncio
from typing import Any

from starlette.requests import Request

from subjects import codec, names
from subjects.errors import Cancelled, DeadlinePassed, Malformed, TooLarge, UnsupportedType

from ..endpoint.headers import read_headers
from ..settings.gateway import HttpSettings
from .streams import LEFT


async def read_body(request: Request, settings: HttpSettings) -> tuple[bytes, str]:
    """The body and its content type, JSON or MessagePack.

    Raises UnsupportedType, TooLarge, DeadlinePassed, Cancelled if the caller leaves.
    """
    declared = request.headers.get("content-type")
    if not declared:
        raise UnsupportedType(f"Content-Type is missing; send {names.JSON} or {names.MSGPACK}")
    content_type = codec.request_type(declared, b"")
    if content_type == names.TEXT:
        raise UnsupportedType(f"Content-Type {declared[:80]!r} is not read here; send {names.JSON} or {names.MSGPACK}")
    if int(request.headers.get("content-length", 0)) > settings.body_bytes:
        raise _too_large(settings)
    try:
        async with asyncio.timeout(settings.read_timeout_s):
            return await _whole(request, settings), content_type
    except TimeoutError:
        raise DeadlinePassed(f"the body did not arrive within {settings.read_timeout_s:g} s") from None


async def read_json(request: Request, settings: HttpSettings) -> dict[str, Any]:
    """The fields of a JSON body. Raises what `read_body` does, and Malformed."""
    body, content_type = await read_body(request, settings)
    if content_type != names.JSON:
        raise UnsupportedType(f"{content_type} is not read on this path; send {names.JSON}")
    fields = codec.loads(body, content_type, max_containers=1)
    if not isinstance(fields, dict):
        raise Malformed("the body must be a JSON object")
    return fields


def timeout_s(request: Request, settings: HttpSettings) -> float:
    """The time that a request names in Ml-Timeout-Ms, or else that of the settings, in seconds. Raises MLError."""
    named = request.headers.get(names.TIMEOUT_MS)
    read = read_headers({names.TIMEOUT_MS: named} if named is not None else None, b"")
    if read.fault:
        raise read.fault
    return read.timeout_s or settings.default_timeout_s


async def _whole(request: Request, settings: HttpSettings) -> bytes:
    parts, size = [], 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Cancelled(LEFT)
        parts.append(message["body"])
        size += len(message["body"])
        if size > settings.body_bytes:
            raise _too_large(settings)
        if not message["more_body"]:
            return b"".join(parts)


def _too_large(settings: HttpSettings) -> TooLarge:
    return TooLarge(f"a body holds {settings.body_bytes} bytes here; send less in each request")
