"""Fields of Ollama's requests that have no effect here, and how far they are accepted."""

from collections.abc import Mapping
from typing import Any

from .. import fields as of_other_apis
from ..fields import Ignored, Neutral, RequestT, kept

IGNORED: Ignored = {
    "verbose": "adds details to those of a model",
}
NEUTRAL: Neutral = {
    "context": ([],),
    "format": ("",),
    "images": ([],),
    "logprobs": (False,),
    "template": ("",),
    "think": (False,),
    "tools": ([],),
    "top_logprobs": (0,),
}
OF_MESSAGES_IGNORED: Ignored = {
    "thinking": "is what the model thought",
    "tool_name": "names the tool of a result",
    "tool_call_id": "names the call of a result",
}
OF_MESSAGES_NEUTRAL: Neutral = {"images": ([],), "tool_calls": ([],)}
OF_OPTIONS_IGNORED: Ignored = {
    "num_ctx": "is the length of the context; here the model's own",
    "num_keep": "is what stays when the context overflows; a prompt that does not fit is refused",
    "repeat_last_n": "is how far back penalties look; here over the whole text",
    "num_batch": "sets up the model",
    "num_gpu": "sets up the model",
    "main_gpu": "sets up the model",
    "num_thread": "sets up the model",
    "num_gqa": "sets up the model",
    "numa": "sets up the model",
    "low_vram": "sets up the model",
    "f16_kv": "sets up the model",
    "logits_all": "sets up the model",
    "vocab_only": "sets up the model",
    "use_mmap": "sets up the model",
    "use_mlock": "sets up the model",
    "embedding_only": "sets up the model",
    "penalize_newline": "exempts line breaks from penalties",
    "mirostat_tau": "belongs to `mirostat`",
    "mirostat_eta": "belongs to `mirostat`",
}
OF_OPTIONS_NEUTRAL: Neutral = {"mirostat": (0,), "tfs_z": (1,), "typical_p": (1,)}


def accepted(fields: Mapping[str, Any], request: type[RequestT]) -> RequestT:
    """The request. A field that is null counts as absent. Raises InvalidField, which names the field."""
    told = dict(fields)
    if isinstance(options := told.get("options"), dict):
        told["options"] = kept(options, OF_OPTIONS_IGNORED, OF_OPTIONS_NEUTRAL, "options.")
    if isinstance(messages := told.get("messages"), list):
        told["messages"] = [
            kept(message, OF_MESSAGES_IGNORED, OF_MESSAGES_NEUTRAL, f"messages.{place}.")
            if isinstance(message, dict)
            else message
            for place, message in enumerate(messages)
        ]
    return of_other_apis.accepted(told, request, IGNORED, NEUTRAL)
