"""Answers in JSON, with vectors in them or not."""

import asyncio
from typing import Any

import orjson
from starlette.responses import Response

from subjects import EmbedBatchReply, names

LARGE_VALUES = 65_536
"""An answer with more numbers than these is written on a thread: it takes milliseconds."""


def answer(fields: Any) -> Response:
    return Response(orjson.dumps(fields, option=orjson.OPT_SERIALIZE_NUMPY), media_type=names.JSON)


async def with_vectors(fields: Any, reply: EmbedBatchReply) -> Response:
    """fields: with the vectors of the reply in them."""
    if len(reply.embeddings) * reply.dimensions > LARGE_VALUES:
        return await asyncio.to_thread(answer, fields)
    return answer(fields)
