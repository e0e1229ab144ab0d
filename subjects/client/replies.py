"""Messages that answer a request: waited for, told from the server's own, and read as replies or errors."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import nats.errors
from nats.aio.msg import Msg
from pydantic import BaseModel, ValidationError

from .. import codec, names
from ..errors import DeadlinePassed, Internal, MLError, Unavailable, from_reply
from .inbox import carries, nobody_listens

ReplyT = TypeVar("ReplyT", bound=BaseModel)


def parse(body: bytes, reply: type[ReplyT]) -> ReplyT:
    """A body as the message that it should be. Raises Internal."""
    try:
        return reply.model_validate(codec.loads(body, codec.request_type(None, body)))
    except ValidationError as error:
        raise Internal(f"the worker's reply is not a {reply.__name__}: {error.error_count()} faults") from None


@contextmanager
def cancellable() -> Iterator[None]:
    """Raises CancelledError if the task was cancelled inside the context.

    asyncio.wait_for, which nats-py uses, loses a cancellation that arrives together with an answer (before Python
    3.12).
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    yield
    if task.cancelling() > before:
        raise asyncio.CancelledError


async def next_message(
    messages: Any, headers: Mapping[str, str], subject: str, timeout_s: float, *, first: bool
) -> Msg:
    """The next message that answers the request with these headers.

    first: whether the server may say instead that nobody listens.
    """
    until = time.monotonic() + timeout_s
    while (left_s := until - time.monotonic()) > 0:
        try:
            with cancellable():
                message: Msg = await messages.next_msg(timeout=left_s)
        except nats.errors.TimeoutError:
            break
        if carries(message, headers[names.REQUEST_ID]):
            return message
        if first and nobody_listens(message):
            raise no_worker(subject)
    raise DeadlinePassed(f"the stream on {subject} did not end in time")


def no_worker(subject: str) -> Unavailable:
    return Unavailable(f"no worker listens on {subject}; start one with `mlbus serve`")


def no_connection(error: nats.errors.Error) -> Unavailable:
    return Unavailable(f"the connection to NATS does not carry the request: {error or type(error).__name__}")


def error_in(message: Msg) -> MLError | None:
    headers = message.headers or {}
    code = headers.get(names.ERROR_CODE)
    if code is None:
        return None
    try:
        body = codec.loads(message.data, codec.request_type(headers.get(names.CONTENT_TYPE), message.data))
    except MLError:
        body = {}
    number = int(code) if code.isdigit() else Internal.code
    return from_reply(number, headers.get(names.ERROR, ""), body if isinstance(body, dict) else {})
