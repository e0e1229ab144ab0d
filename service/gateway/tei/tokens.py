"""text-embeddings-inference's /tokenize, whose path is llama.cpp's too."""

from typing import Any

from starlette.responses import Response

from subjects import MLClient, TokenizeReply
from subjects.errors import MLError, NotFound
from subjects.models import ModelEntry

from .. import errors
from ..answers import answer
from ..fields import accepted
from ..forms import TEI
from .requests import TeiTokenizeRequest


async def tokenized(ml: MLClient, fields: dict[str, Any], timeout_s: float) -> Response:
    """The tokens of each text."""
    try:
        asked = accepted(fields, TeiTokenizeRequest)
        reply = await ml.tokenize(
            asked.inputs,
            model=asked.model or (await default_entry(ml)).id,
            add_special_tokens=asked.add_special_tokens,
            prompt_name=asked.prompt_name,
            timeout_s=timeout_s,
        )
    except MLError as error:
        return errors.response(error, "/tokenize", form=TEI)
    return answer([list(_tokens(reply, place)) for place in range(len(reply.counts))])


def _tokens(reply: TokenizeReply, place: int) -> Any:
    """start, stop: bytes of the text in UTF-8."""
    assert reply.results is not None
    found = reply.results[place]
    special, offsets = frozenset(found.special), found.offsets or []
    for number, (token, piece) in enumerate(zip(found.ids, found.pieces, strict=True)):
        is_special = number in special
        start, stop = (None, None) if is_special else offsets[number]
        yield {"id": token, "text": piece, "special": is_special, "start": start, "stop": stop}


async def default_entry(ml: MLClient) -> ModelEntry:
    """The model that embeds where none is named. Raises NotFound."""
    found = (await ml.models.list(kind="embedding")).models
    entry = next((entry for entry in found if entry.default), None)
    if entry is None:
        raise NotFound("no model here embeds texts by default; name one")
    return entry
