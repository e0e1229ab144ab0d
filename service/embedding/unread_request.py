"""When a request to embed would be answered, judged by its unread body: a flood is refused without being decoded."""

import functools
import json
import re
from collections.abc import Iterable

import msgpack

from .batcher import Batcher

_MODEL = (b'"model"', b"\xa5model")
"""The key of the model in a body, in JSON and in MessagePack."""


def ready_in_s(batchers: Iterable[Batcher], body: bytes, default: str | None, caller: str | None = None) -> float:
    """When the request would be answered, in seconds from now; 0 if its model may not be in memory.

    batchers: of the models in memory. default: the model of requests that name none. caller: who takes turns.
    """
    if places := [at for key in _MODEL if (at := body.find(key)) >= 0]:
        named = {batcher: _naming(batcher.encoder.model) for batcher in batchers}
        meant = [batcher for batcher, naming in named.items() if any(naming.match(body, at) for at in places)]
    else:
        meant = [batcher for batcher in batchers if batcher.encoder.model == default]
    return min((batcher.ready_in_s(len(body), caller) for batcher in meant), default=0.0)


@functools.cache
def _naming(model: str) -> re.Pattern[bytes]:
    """The bytes that name a model in a body, in JSON or MessagePack."""
    in_json, in_msgpack = re.escape(json.dumps(model).encode()), re.escape(msgpack.packb(model))
    return re.compile(rb"%b\s*:\s*%b|%b%b" % (_MODEL[0], in_json, _MODEL[1], in_msgpack))
