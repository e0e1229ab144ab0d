"""`ml.generate` and `ml.generate.batch`: decode, generate, encode."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

from models.generation.types import Event
from subjects import names
from subjects.errors import Conflict, InvalidField, TooLarge
from subjects.generate import GenerateBatchRequest, GenerateRequest, TokenFrame
from subjects.stream import DONE, TOKEN

from ..endpoint.call import Call
from ..endpoint.frames import Frames
from ..endpoint.route import Handler
from ..generation.reply import Replies, least_bytes, least_reply_bytes
from ..generation.request import GenerationCall, read
from ..residency.manager import ModelManager
from ..telemetry import GenerationTelemetry

LARGE_BYTES = 32_768
LARGE_COUNT = 256
"""A reply of this many bytes or completions is built in a thread, not in the event loop."""


@dataclass(frozen=True, slots=True)
class GenerateHandlers:
    """The two subjects differ in how many prompts they take, and in the form of the reply."""

    manager: ModelManager
    telemetry: GenerationTelemetry
    _ids: set[str] = field(default_factory=set)

    def handlers(self) -> dict[str, Handler]:
        return {names.GENERATE: Handler(self.generate), names.GENERATE_BATCH: Handler(self.generate)}

    async def generate(self, request: GenerateRequest | GenerateBatchRequest, call: Call) -> Frames:
        """The one reply; or pieces of text as they come, and then the `done` frame."""
        call.choose_form(None)
        if request.num_beams > 1 and call.framed:
            raise InvalidField("field 'num_beams': beams are not streamed; send 1, or ask for one reply")
        if call.headers.reply_type == names.TEXT and (request.n > 1 or request.logprobs is not None):
            raise InvalidField("fields 'n' and 'logprobs' need a reply in JSON or MessagePack; set Accept")
        generation = read(request, str(call.serial), call.caller)
        if not call.framed:
            _check_size(least_reply_bytes(generation), call.reply_limit)
        size, begun = 0, False
        async with self._generating(generation, request.model, call) as (replies, batches):
            async for events in batches:
                for completion, piece in replies.pieces(events):
                    if not begun:
                        begun = True
                        first_s = asyncio.get_running_loop().time() - call.received
                        self.telemetry.first_piece(replies.facts.model, first_s)
                    if call.framed:
                        call.large = least_bytes(piece) >= LARGE_BYTES
                        frames = replies.frames(piece, completion.number, call.reply_limit)
                        while frame := await _next(frames, call.large):
                            yield TOKEN, frame
                    else:
                        completion.add(piece)
                        size += least_bytes(piece)
                        _check_size(size, call.reply_limit)
        call.large = size >= LARGE_BYTES or generation.count >= LARGE_COUNT
        last = replies.done if call.framed else replies.whole
        yield DONE, await asyncio.to_thread(last) if call.large else last()

    @asynccontextmanager
    async def _generating(
        self, generation: GenerationCall, model: str | None, call: Call
    ) -> AsyncIterator[tuple[Replies, AsyncGenerator[list[Event], None]]]:
        """Run a call's completions while the context is open, on a model that stays loaded -> with their events.

        Raises Conflict if a request with the same id runs: a cancellation could not tell the two apart.
        """
        request_id = call.headers.request_id
        if request_id in self._ids:
            raise Conflict(f"a request with the same {names.REQUEST_ID} is running already; send another")
        self._ids.add(request_id)
        try:
            async with self.manager.generator(model, generation.form) as generator:
                generation = await generation.with_echoes(generator)
                replies = Replies(generation, generator.facts)
                stream = generator.stream(call.framed, call.deadline)
                with call.winding_up(stream.end):
                    async with aclosing(stream.events(generation.requests(generator))) as batches:
                        yield replies, batches
                replies.end_rest(stream.ending)
        finally:
            self._ids.remove(request_id)


async def _next(frames: Iterator[TokenFrame], is_large: bool) -> TokenFrame | None:
    """A piece's next frame; None after the last."""
    return await asyncio.to_thread(next, frames, None) if is_large else next(frames, None)


def _check_size(size: int, limit_bytes: int) -> None:
    """End a call whose one reply will not fit, as soon as that is certain. Raises TooLarge."""
    if size > limit_bytes:
        raise TooLarge(
            f"the reply passes the {limit_bytes} bytes that a message holds; ask for fewer `max_tokens`, `n`, "
            f"`logprobs` or prompts, or for a stream with {names.STREAM}: true"
        )
