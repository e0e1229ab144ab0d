"""What the published micro v1 JSON Schemas ask of INFO and STATS, in our own words (ADR-32)."""

from typing import Any

from nats.micro.service import NAME_REGEX, SEMVER_REGEX

NAME = {"type": "string", "minLength": 1, "pattern": NAME_REGEX.pattern}
TEXT = {"type": "string", "minLength": 1}
INT64 = {"type": "integer", "minimum": -(2**63) + 1, "maximum": 2**63 - 1}
METADATA = {"oneOf": [{"type": "object", "additionalProperties": {"type": "string"}}, {"type": "null"}]}
IDENTITY = {
    "name": NAME,
    "id": TEXT,
    "version": {"type": "string", "minLength": 5, "pattern": SEMVER_REGEX.pattern},
    "metadata": METADATA,
}


def _message(kind: str, required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["type", "name", "id", "version", *required],
        "properties": {"type": {"const": f"io.nats.micro.v1.{kind}_response"}, **IDENTITY, **properties},
    }


def _endpoints(*required: str, **properties: Any) -> dict[str, Any]:
    item = {"name": NAME, "subject": TEXT, **properties}
    return {
        "type": "array",
        "items": {"type": "object", "required": ["name", "subject", *required], "properties": item},
    }


PING = _message("ping", [])
INFO = _message("info", ["description"], description={"type": "string"}, endpoints=_endpoints(metadata=METADATA))
STATS = _message(
    "stats",
    ["started", "endpoints"],
    started={"type": "string", "format": "date-time"},
    endpoints=_endpoints(
        "num_requests",
        "num_errors",
        "last_error",
        "processing_time",
        "average_processing_time",
        num_requests=INT64,
        num_errors=INT64,
        last_error={"type": "string"},
        processing_time=INT64,
        average_processing_time=INT64,
        data={"type": "object"},
    ),
)
