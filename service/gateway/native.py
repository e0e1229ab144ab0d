"""`POST /ml/…`: every subject of the wire contract under its own name, bodies and headers as they are."""

from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from subjects import codec, names
from subjects.errors import Forbidden, InvalidField, MLError, NotAcceptable
from subjects.routes import ROUTES, Route
from subjects.stream import ERROR, REPLY, Frame

from ..endpoint.headers import RequestHeaders, read_headers
from ..settings.gateway import HttpSettings
from . import errors
from .body import read_body
from .bus import Bus
from .streams import EVENT_STREAM, EventStream, event, leaving_cancels

Answer = Callable[[Request], Coroutine[Any, Any, Response]]
_PASSED = (names.CONTENT_TYPE, names.ACCEPT, names.REQUEST_ID, names.PING_MS, names.STREAM, names.TRACEPARENT)
WORKER = "{worker}"


def paths() -> Iterator[tuple[str, Route]]:
    """The path of each subject, and of each that can be asked of one worker once more, with the worker's id."""
    for route in ROUTES.values():
        path = "/" + route.subject.replace(".", "/")
        yield path, route
        if route.by_worker:
            yield f"{path}/{WORKER}", route


def add_routes(app: FastAPI, bus: Bus, settings: HttpSettings) -> None:
    """A route for each path."""
    native = _Native(bus, settings)
    for path, route in paths():
        app.add_api_route(path, native.answer_on(route), methods=["POST"])


class _Native:
    def __init__(self, bus: Bus, settings: HttpSettings) -> None:
        self._bus = bus
        self._settings = settings

    def answer_on(self, route: Route) -> Answer:
        async def answer(request: Request) -> Response:
            return await self._answer(route, request)

        return answer

    async def _answer(self, route: Route, request: Request) -> Response:
        if route.role == "admin":
            raise Forbidden(f"{route.subject} is for administrators, who ask over NATS")
        body, _ = await read_body(request, self._settings)
        own, streamed = _passed(request, route)
        headers = read_headers(own, body, route.has_text_reply)
        try:
            if headers.fault:
                raise headers.fault
            if worker := request.path_params.get("worker"):
                route = route.to_worker(_token(worker))
            own[names.REQUEST_ID] = headers.request_id
            timeout_s = headers.timeout_s or self._settings.default_timeout_s
            own.pop(names.TIMEOUT_MS, None)
            if streamed or (route.frames and b"stream" in body):
                return await self._stream(route, request, body, own, headers, timeout_s)
            async with leaving_cancels(request.receive):
                reply = await self._bus.ml.forward(route, body, own, timeout_s)
            told = reply.headers or {}
            passed = {name: told[name] for name in (names.REQUEST_ID, names.RESULT) if name in told}
            return Response(reply.data, headers=passed, media_type=told[names.CONTENT_TYPE])
        except MLError as error:
            return errors.response(error, request.url.path, headers.request_id, headers.reply_type)

    async def _stream(
        self,
        route: Route,
        request: Request,
        body: bytes,
        own: dict[str, str],
        headers: RequestHeaders,
        timeout_s: float,
    ) -> Response:
        """Frames as server-sent events, or the one reply where the caller allowed both or the worker made no frames."""
        told = {names.REQUEST_ID: headers.request_id}
        frames = self._bus.ml.forward_stream(route, body, own, timeout_s)
        try:
            async with leaving_cancels(request.receive):
                first = await anext(frames)
            if first.event == REPLY:
                return Response(first.body, headers=told, media_type=headers.reply_type)
            if headers.reply_type != names.JSON:
                raise NotAcceptable(f"a stream is {EVENT_STREAM} with {names.JSON} in it; accept one of these")
        except BaseException:
            await frames.aclose()
            raise
        return EventStream(
            _events(first, frames),
            lambda error: event(codec.dumps_error(error, headers.request_id, names.JSON), ERROR),
            self._settings.write_timeout_s,
            told,
        )


async def _events(first: Frame, frames: AsyncGenerator[Frame, None]) -> AsyncGenerator[bytes, None]:
    try:
        yield _event(first)
        async for frame in frames:
            yield _event(frame)
    finally:
        await frames.aclose()


def _event(frame: Frame) -> bytes:
    return event(frame.body, frame.event, frame.seq)


def _passed(request: Request, route: Route) -> tuple[dict[str, str], bool]:
    """The headers for the worker, and whether they ask for a stream, or allow one."""
    own = {name: value for name in (*_PASSED, names.TIMEOUT_MS) if (value := request.headers.get(name)) is not None}
    if EVENT_STREAM in own.get(names.ACCEPT, ""):
        own[names.ACCEPT] = names.JSON
        if route.frames:
            own.setdefault(names.STREAM, "true")
    streamed = route.lasting or own.get(names.STREAM, "false").lower() not in ("", "false", "0")
    return own, streamed


def _token(worker: str) -> str:
    if not (worker.isascii() and worker.isalnum()) or len(worker) > 64:
        raise InvalidField("the path ends with a worker's id, which is letters and digits")
    return worker
