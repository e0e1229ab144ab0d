"""The errors of the wire and the table of their codes. A worker replies with them, the client raises them."""

from collections.abc import Mapping
from typing import Any, ClassVar

from . import names


class MLError(Exception):
    """An error reply: the code in `Nats-Service-Error-Code`, and a message that says what to change.

    retryable: the same request may succeed later. retry_after_ms: when to try again, if known.
    """

    code: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_ms: int | None = None, request_id: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.request_id = request_id

    def body(self, request_id: str) -> dict[str, Any]:
        """The body of the reply, for any content type."""
        return {
            "error": {
                "code": self.code,
                "message": self.message,
                "retryable": self.retryable,
                "retry_after_ms": self.retry_after_ms,
                "request_id": request_id,
            }
        }

    def headers(self) -> dict[str, str]:
        """The two headers of the micro protocol; header values cannot hold line breaks or much text."""
        line = " ".join(self.message.split())[:512]
        return {names.ERROR: line.encode("ascii", "replace").decode(), names.ERROR_CODE: str(self.code)}


class Malformed(MLError):
    """The body or a header cannot be read, or the subject does not stream. Correct it; set `Content-Type`."""

    code = 400


class Unauthorized(MLError):
    """Over HTTP only: there is no key, or it is unknown or revoked. Send one in `Authorization`."""

    code = 401


class Forbidden(MLError):
    """Another role may do this, such as the administrator. The message says which, and how."""

    code = 403


class NotFound(MLError):
    """No such model, version or job, or the model is not loaded. Use an id from `mlbus models`."""

    code = 404


class NotAcceptable(MLError):
    """`Accept` names no type that is sent. Accept one that the message names."""

    code = 406


class DeadlinePassed(MLError):
    """The deadline passed. Give more time, or add workers."""

    code = 408


class Conflict(MLError):
    """The worker's state forbids it: a model in use, other dimensions, mixed versions, a request id in use."""

    code = 409


class TooLarge(MLError):
    """A text, batch, header block or reply is too large, or prompt and `max_tokens` exceed the context or the cache.

    The message names the limit. Stream, split or cut.
    """

    code = 413


class UnsupportedType(MLError):
    """`Content-Type` is not read here. Send JSON, MessagePack, or text where the subject takes it."""

    code = 415


class InvalidField(MLError):
    """A field is missing, unknown or out of bounds, or the model does not support it. The message names the field."""

    code = 422


class Busy(MLError):
    """This worker is full, or earlier work leaves no time until the deadline. Wait `retry_after_ms`, or add workers."""

    code = 429
    retryable = True


class Cancelled(MLError):
    """The request was cancelled, or its reader was too slow."""

    code = 499


class Internal(MLError):
    """A fault in the worker, without details. Look for the request id in the worker's log."""

    code = 500


class Unavailable(MLError):
    """The worker is stopping, or cannot load the model now. From `MLClient` also: there is no worker. Try again."""

    code = 503
    retryable = True


class NotServed(MLError):
    """The worker is not configured to serve the model; waiting does not help."""

    code = 503


class VersionChanged(Conflict):
    """Raised by the client: the weights were swapped while it collected vectors, and versions must not be mixed."""


class FrameLost(Internal):
    """Raised by the client: a frame of a stream is missing, for instance because the connection broke."""


class OutOfMemory(MLError):
    """The device has no memory for the text, or the budget none for the model. Try later, or send less."""

    code = 507
    retryable = True


CODES: dict[int, type[MLError]] = {}
"""The exception for each code: of several, the one that is defined first."""
for _kind in MLError.__subclasses__():
    CODES.setdefault(_kind.code, _kind)


def from_reply(code: int, message: str, body: Mapping[str, Any]) -> MLError:
    """The exception for an error reply. An unknown 4xx code becomes Malformed, any other unknown code Internal.

    body: the decoded body, or an empty mapping if it could not be read.
    """
    detail = body.get("error")
    fields: Mapping[str, Any] = detail if isinstance(detail, Mapping) else {}
    kind = CODES.get(code, Malformed if 400 <= code < 500 else Internal)
    if kind is Unavailable and fields.get("retryable") is False:
        kind = NotServed
    retry_after_ms = fields.get("retry_after_ms")
    return kind(
        str(fields.get("message", message)),
        retry_after_ms=retry_after_ms if isinstance(retry_after_ms, int) else None,
        request_id=str(fields.get("request_id", "")),
    )
