"""Parameters of OpenAI's API that no model here has a use for: which are ignored, and which must change nothing."""

from collections.abc import Mapping
from typing import Any

from .. import fields as of_other_apis
from ..fields import RequestT

IGNORED: Mapping[str, str] = {
    "user": "names the caller's user",
    "safety_identifier": "names the caller's user",
    "metadata": "labels a stored answer",
    "store": "keeps the answer at the provider",
    "prompt_cache_key": "names a cache; prefixes are cached without it",
    "cache_prompt": "is llama.cpp's; prompts are cached without it",
    "id_slot": "is llama.cpp's, and names a slot",
    "samplers": "is llama.cpp's, and orders the samplers",
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
    return of_other_apis.accepted(fields, request, IGNORED, NEUTRAL)
