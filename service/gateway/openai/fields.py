"""Parameters of OpenAI's API that no model here has a use for: which are ignored, and which must change nothing."""

from collections.abc import Mapping
from typing import Any, TypeVar

from subjects import codec
from subjects.errors import InvalidField
from subjects.message import Message

RequestT = TypeVar("RequestT", bound=Message)

IGNORED: Mapping[str, str] = {
    "user": "names the caller's user",
    "safety_identifier": "names the caller's user",
    "metadata": "labels a stored answer",
    "store": "keeps the answer at the provider",
    "prompt_cache_key": "names a cache; prefixes are cached without it",
}
"""Parameters that clients send and that mean nothing here, and what they are for elsewhere."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
}
"""Parameters that cannot be honoured, and the values with which they ask for nothing."""


def accepted(fields: Mapping[str, Any], request: type[RequestT]) -> RequestT:
    """The request. A parameter that is null counts as absent. Raises InvalidField, which names the parameter."""
    kept = {}
    for name, value in fields.items():
        if value is None or name in IGNORED:
            continue
        if name not in NEUTRAL:
            kept[name] = value
        elif value not in NEUTRAL[name]:
            raise InvalidField(f"field {name!r} cannot be honoured: no model here does that; leave it out")
    return codec.validate(kept, request)
