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
    code = 400


class Forbidden(MLError):
    """Another role may do it; the message says which, and how."""

    code = 403


class NotFound(MLError):
    code = 404


class NotAcceptable(MLError):
    code = 406


class DeadlinePassed(MLError):
    code = 408


class Conflict(MLError):
    """The state of the worker forbids it, for instance unloading a model that requests are using."""

    code = 409


class TooLarge(MLError):
    code = 413


class UnsupportedType(MLError):
    code = 415


class InvalidField(MLError):
    code = 422


class Busy(MLError):
    code = 429
    retryable = True


class Cancelled(MLError):
    code = 499


class Internal(MLError):
    code = 500


class Unavailable(MLError):
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
    code = 507
    retryable = True


CODES: dict[int, type[MLError]] = {
    error.code: error
    for error in (
        Malformed,
        Forbidden,
        NotFound,
        NotAcceptable,
        DeadlinePassed,
        Conflict,
        TooLarge,
        UnsupportedType,
        InvalidField,
        Busy,
        Cancelled,
        Internal,
        Unavailable,
        OutOfMemory,
    )
}


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
