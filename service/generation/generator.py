"""One loaded generation model at work: prompts in, pieces of text out.

A token's way: the engine loop (engine_loop.py) has the device's thread run a step (engine_step.py) of the engine
(models/generation/engine.py). The token goes to the event queue of its call (event_queue.py). The completion stream
(completion_stream.py) takes what is there, at most every 20 ms. The handler (handlers/generate.py) makes frames of it
(reply.py), and endpoint/frames.py sends them.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from models.generation.errors import EngineFull, PromptTooLong
from models.generation.types import Chat, Fill, GenerationEngine, Ids, Plain, Prompt, PromptTokens, Request

from ..runtime.device_thread import DeviceThread
from ..served_model import ServedModel
from ..telemetry import GenerationTelemetry
from .completion_stream import CompletionStream
from .engine_loop import EngineLoop

TOKEN_CHARS = 128
"""More characters than any tokenizer has in a token on average: a prompt longer than a context of them is too long."""


class Generator(ServedModel):
    """A running engine.

    window: how many completions of one call are in the engine at a time. stuck_step_s: when a step counts as stuck.
    """

    def __init__(
        self,
        engine: GenerationEngine,
        device: DeviceThread,
        telemetry: GenerationTelemetry,
        window: int = 32,
        stuck_step_s: float = 30.0,
    ) -> None:
        super().__init__(engine, device)
        self.engine = engine
        self._window = window
        self._loop = EngineLoop(engine, device, telemetry, stuck_step_s)

    @property
    def stuck_s(self) -> float:
        """How long the engine's present step has been running, if that is too long; else 0."""
        return self._loop.watchdog.stuck_s

    async def _serve(self) -> None:
        await self._loop.run()

    async def request(
        self, prompt: Prompt, make: Callable[[PromptTokens], Request], max_tokens: int = 0, num_beams: int = 1
    ) -> Request:
        """Tokenize a prompt, make a request of it and have it checked. Raises InvalidRequest, PromptTooLong."""
        size, context = size_of(prompt), self.engine.facts.max_tokens
        least = size_of(replace(prompt, context=())) if isinstance(prompt, Fill) else size
        if least > context * TOKEN_CHARS:
            raise PromptTooLong(least // TOKEN_CHARS, 1, context, "the model's context, at the very least")
        return await self.on_tokenizer(size, self._request, prompt, make, max_tokens, num_beams)

    def _request(
        self, prompt: Prompt, make: Callable[[PromptTokens], Request], max_tokens: int, num_beams: int
    ) -> Request:
        request = make(self.engine.prompt_tokens(prompt, max_tokens, num_beams))
        self.engine.check(request)
        return request

    def stream(self, streamed: bool = True, deadline: float = math.inf) -> CompletionStream:
        """The stream for the completions of one call; see CompletionStream. Raises Busy if the engine is full."""
        try:
            self._loop.require_slot()
        except EngineFull as full:
            raise self._loop.refusal(full) from None
        return CompletionStream(self._loop, self._window, streamed, deadline)


def size_of(prompt: str | Prompt) -> int:
    """Characters to tokenize."""
    match prompt:
        case str():
            return len(prompt)
        case Plain(text):
            return len(text)
        case Ids(tokens):
            return len(tokens)
        case Chat(messages):
            return sum(len(message.content) for message in messages)
        case Fill():
            return len(prompt.prefix) + len(prompt.suffix) + sum(len(file.text) for file in prompt.context)
