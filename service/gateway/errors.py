"""Errors as HTTP answers: the body of the wire contract, or the one that OpenAI's clients read."""

import math
import re
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from subjects import codec, names
from subjects.errors import CODES, Internal, Malformed, MLError, NotFound, TooLarge

from .forms import Form, form_of

OPENAI = "/v1/"
"""What comes below this path gets errors in OpenAI's form."""
_PARAMETER = re.compile(r"(?:unknown )?field '([^']+)'")
_PARAMETERS = {"texts": "input", "prompts": "prompt", "prefix": "prompt"}
"""Fields of the wire contract that have another name at OpenAI."""
_OPENAI_STATUS = {413: 400, 422: 400, 507: 503}
"""Where OpenAI's clients know another status for the same."""
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class MethodNotAllowed(Malformed):
    """The path takes another method."""

    code = 405


class HeadersTooLarge(TooLarge):
    """The request's headers are too large."""

    code = 431


def of_http(error: HTTPException, method: str, path: str) -> MLError:
    """What the router refuses."""
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound(f"there is no {path[:200]} here; /openapi.json lists what there is")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return MethodNotAllowed(f"{method[:20]} is not for {path[:200]}; /openapi.json lists what is")
    return CODES.get(error.status_code, Internal)(error.detail)


def response(
    error: MLError, path: str, request_id: str = "", content_type: str = names.JSON, form: Form | None = None
) -> Response:
    """The answer to a request on the path. content_type: of the wire contract's form. form: not that of the path."""
    request_id = error.request_id or request_id or uuid4().hex
    headers = {names.REQUEST_ID: request_id, "Cache-Control": "no-store"}
    if error.retry_after_ms is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_ms / 1000))
        headers["Retry-After-Ms"] = str(error.retry_after_ms)
    elif error.retryable:
        headers["Retry-After"] = "1"
    if path.startswith(OPENAI):
        return Response(orjson.dumps(openai_body(error)), openai_status(error), headers, media_type=names.JSON)
    if form := form or form_of(path):
        fields, status = form.of(error)
        return Response(orjson.dumps(fields), status, headers, media_type=names.JSON)
    body = codec.dumps_error(error, request_id, content_type)
    return Response(body, error.code, headers | error.headers(), media_type=content_type)


def openai_status(error: MLError) -> int:
    return _OPENAI_STATUS.get(error.code, error.code)


def openai_body(error: MLError) -> dict[str, Any]:
    """In OpenAI's form; `param` names the field at fault."""
    status = openai_status(error)
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    named = _PARAMETER.match(error.message)
    field = named[1].partition(".")[0] if named else ""
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": _PARAMETERS.get(field, field) or None,
            "code": "model_not_found" if isinstance(error, NotFound) and "model" in error.message else None,
        }
    }
