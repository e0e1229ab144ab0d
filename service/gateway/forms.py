"""Errors in the forms of the APIs that editors speak, chosen by the path."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from subjects.errors import MLError

_STATUS = {413: 400, 422: 400, 507: 503}
"""Where clients know another status for the same."""
_NAME = re.compile(r"'(\w+)([\w.]*)'")


@dataclass(frozen=True, slots=True)
class Form:
    """body: of an error, by its message and its status. status: where it is not the wire contract's. names: fields of
    the wire contract that have another name."""

    body: Callable[[str, int], dict[str, Any]]
    status: Mapping[int, int]
    names: Mapping[str, str]

    def of(self, error: MLError) -> tuple[dict[str, Any], int]:
        """The body and the status."""
        status = self.status.get(error.code, error.code)
        message = _NAME.sub(lambda name: f"'{self.names.get(name[1], name[1])}{name[2]}'", error.message)
        return self.body(message, status), status


_LLAMACPP_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "unavailable_error",
    503: "unavailable_error",
}
_TEI_TYPES = {413: "Validation", 422: "Validation", 429: "Overloaded", 503: "Unhealthy"}


def _llamacpp(message: str, status: int) -> dict[str, Any]:
    kind = _LLAMACPP_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"code": status, "message": message, "type": kind}}


def _tei(message: str, status: int) -> dict[str, Any]:
    return {"error": message, "error_type": _TEI_TYPES.get(status, "Validation" if status < 500 else "Backend")}


LLAMACPP = Form(
    _llamacpp,
    _STATUS,
    names={
        "max_tokens": "n_predict",
        "n": "n_cmpl",
        "repetition_penalty": "repeat_penalty",
        "prompts": "prompt",
        "prefix": "input_prefix",
        "suffix": "input_suffix",
        "context": "input_extra",
    },
)
OLLAMA = Form(
    lambda message, _status: {"error": message},
    _STATUS,
    names={"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty", "prefix": "prompt", "texts": "input"},
)
TEI = Form(
    _tei,
    status={400: 422},
    names={"texts": "inputs", "text": "inputs", "query": "source_sentence", "candidates": "sentences"},
)
_OF_PATH = {
    **dict.fromkeys(("/infill", "/completion", "/tokenize", "/detokenize", "/props", "/health"), LLAMACPP),
    **dict.fromkeys(("/embed", "/similarity", "/info"), TEI),
}


def form_of(path: str) -> Form | None:
    """That of the path's API; None: the one of the wire contract, or OpenAI's."""
    return OLLAMA if path.startswith("/api/") else _OF_PATH.get(path)
