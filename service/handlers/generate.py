"""`ml.generate` and `ml.generate.batch`: decode, call, encode."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import TypeAlias

from models.generation.request import Finished, Piece, Scored
from subjects import names
from subjects.errors import Conflict, InvalidField, TooLarge
from subjects.generate import GenerateBatchRequest, GenerateRequest, TokenFrame
from subjects.stream import DONE, TOKEN

from ..endpoint.call import Call
from ..endpoint.frames import Frames
from ..endpoint.route import Handler
from ..generation.generator import Generator
from ..generation.reply import Completion, Replies, least_bytes, least_reply_bytes
from ..generation.request import GenerationCall, number_of, read
from ..generation.telemetry import GenerationTelemetry
from ..residency.manager import ModelManager

LARGE_BYTES = 32_768
LARGE_COUNT = 256
"""From so many bytes or completions on a reply is put together in a thread: the event loop has others to serve."""
News: TypeAlias = AsyncGenerator[tuple[int, Piece | Finished], None]


class GenerateHandlers:
    """Both subjects differ in how many prompts they take, and in the form of the reply."""

    def __init__(self, residency: ModelManager, telemetry: GenerationTelemetry) -> None:
        self._residency = residency
        self._telemetry = telemetry
        self._ids: set[str] = set()

    def handlers(self) -> dict[str, Handler]:
        return {names.GENERATE: Handler(self.generate), names.GENERATE_BATCH: Handler(self.generate)}

    async def generate(self, request: GenerateRequest | GenerateBatchRequest, call: Call) -> Frames:
        """The one reply; or pieces of text as they come, and then what holds for all of them."""
        call.choose_form(None)
        if request.num_beams > 1 and call.framed:
            raise InvalidField("field 'num_beams': beams are not streamed; send 1, or ask for one reply")
        if call.asked.reply_type == names.TEXT and (request.n > 1 or request.logprobs is not None):
            raise InvalidField("fields 'n' and 'logprobs' need a reply in JSON or MessagePack; set Accept")
        asked, size = read(request, str(call.serial), call.source), 0
        if not call.framed:
            _check_size(least_reply_bytes(asked), call.reply_limit)
        with self._sole(call.asked.request_id):
            async with self._residency.generator(request.model, asked.form) as generator:
                completions = [
                    Completion(number, asked.seed_of(number), asked.never_begun(number, "cancelled"))
                    for number in range(asked.count)
                ]
                replies = Replies(asked, generator.facts, completions)
                async with aclosing(self._timed(_news(asked, generator, call), generator, call)) as news:
                    async for number, event in news:
                        if isinstance(event, Finished):
                            completions[number].end = event
                            replies.require_one()
                        elif call.framed:
                            call.large = least_bytes(event) >= LARGE_BYTES
                            frames = replies.frames(event, number, call.reply_limit)
                            while frame := await _next(frames, call.large):
                                yield TOKEN, frame
                        else:
                            completions[number].add(event)
                            size += least_bytes(event)
                            _check_size(size, call.reply_limit)
        call.large = size >= LARGE_BYTES or asked.count >= LARGE_COUNT
        last = replies.done if call.framed else replies.whole
        yield DONE, await asyncio.to_thread(last) if call.large else last()

    async def _timed(self, news: News, generator: Generator, call: Call) -> News:
        """The same; tells how long the first piece of text took."""
        heard = False
        async with aclosing(news):
            async for number, event in news:
                if isinstance(event, Piece) and not heard:
                    heard = True
                    self._telemetry.first(generator.facts.model, asyncio.get_running_loop().time() - call.received)
                yield number, event

    @contextmanager
    def _sole(self, request_id: str) -> Iterator[None]:
        """Two requests of one id could not be told apart by who cancels one. Raises Conflict."""
        if request_id in self._ids:
            raise Conflict(f"a request with the same {names.REQUEST_ID} is running already; send another")
        self._ids.add(request_id)
        try:
            yield
        finally:
            self._ids.remove(request_id)


async def _news(asked: GenerationCall, generator: Generator, call: Call) -> News:
    """Events with the number of their completion, an echo before its text; an end for each of them."""
    flight = generator.flight(streamed=call.framed, deadline=call.deadline)
    silent, left = set(range(asked.count)), set(range(asked.count))
    with call.winding_up(flight.end):
        async with aclosing(flight.events(asked.requests(generator))) as told:
            async for events in told:
                for event in events:
                    number = number_of(event.request)
                    failed = False
                    if isinstance(event, Finished):
                        left.remove(number)
                        failed = event.error is not None
                    if number in silent and not failed:
                        silent.remove(number)
                        if echo := asked.echo(number):
                            scores = event.logprobs if isinstance(event, Scored) else ()
                            yield number, Piece(event.request, echo, 0, scores)
                    if not isinstance(event, Scored):
                        yield number, event
        for number in sorted(left):
            yield number, asked.never_begun(number, flight.ending)


async def _next(frames: Iterator[TokenFrame], is_large: bool) -> TokenFrame | None:
    """A piece's next frame; None behind the last."""
    return await asyncio.to_thread(next, frames, None) if is_large else next(frames, None)


def _check_size(size: int, limit_bytes: int) -> None:
    """End a call whose one reply will not fit, as soon as that is sure. Raises TooLarge."""
    if size > limit_bytes:
        raise TooLarge(
            f"the reply passes the {limit_bytes} bytes that a message holds; ask for fewer `max_tokens`, `n`, "
            f"`logprobs` or prompts, or for a stream with {names.STREAM}: true"
        )
