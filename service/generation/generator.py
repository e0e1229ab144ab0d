"""One loaded generation model, as handlers ask for it: prompts in, pieces of text out, through its engine.

A token's way: the engine loop (engine_loop.py) has the device's thread run a step (engine_step.py) of the engine
(models/generation/engine.py). The token goes into the event queue of its call (event_queue.py). The completion stream
(completion_stream.py) takes what is there, at most every 20 ms. The handler (handlers/generate.py) makes frames of it
(reply.py), and endpoint/frames.py sends them.
"""

import math
from collections.abc import Callable

from models.generation.base import Chat, Fill, GenerationEngine, Plain, Prompt, PromptTokens
from models.generation.errors import EngineFull, PromptTooLong
from models.generation.request import Request

from ..residency.served import facts_of
from ..runtime.device_thread import DeviceThread
from ..runtime.loop import Loop
from .completion_stream import CompletionStream
from .engine_loop import EngineLoop, StepObserver
from .shortest_job_first import ShortestJobFirst

TOKENIZER_THREADS = 2
CHAR_S = 10e-6
"""How much longer a prompt may wait for the tokeniser for each of its characters: ten times what that takes."""
TOKEN_CHARS = 128
"""No tokeniser's tokens are so long on an average: what is longer than a context of them is not even tokenised."""


class Generator:
    """A running engine and what belongs to it; `close` ends both and lets go of the weights.

    window: how many completions of one call are in the engine at a time. stuck_step_s: how long a step may take before
    it is told of.
    """

    def __init__(
        self,
        engine: GenerationEngine,
        device: DeviceThread,
        observer: StepObserver,
        window: int = 32,
        stuck_step_s: float = 30.0,
    ) -> None:
        self.engine = engine
        self.facts = facts_of(engine)
        self._device = device
        self._window = window
        self._tokenisers = ShortestJobFirst(TOKENIZER_THREADS, CHAR_S, f"tokenizer.{self.facts.model}")
        self._stepper = EngineLoop(engine, device, observer, stuck_step_s)
        self._loop = Loop(f"stepper.{self.facts.model}")

    @property
    def stuck_s(self) -> float:
        """For how long the engine's present step has been taking too long; 0 where it does not."""
        return self._stepper.watchdog.stuck_s

    def start(self, on_died: Callable[[BaseException], None]) -> None:
        """Begin to work. on_died hears of an end that nobody asked for, since then nobody would answer its callers."""
        self._loop.start(self._stepper.run(), on_died)

    async def stop(self) -> None:
        """End the stepping; what is in the engine gets Unavailable."""
        await self._loop.stop()
        self._tokenisers.close()

    async def close(self) -> None:
        """Stop, then let go of the weights and the cache, on the device's thread: a step may still run there."""
        await self.stop()
        await self._device.run(self.engine.close, urgent=True)

    async def request(self, prompt: Prompt, make: Callable[[PromptTokens], Request]) -> Request:
        """Tokenise a prompt, make a request of it and have it checked. Raises InvalidRequest, PromptTooLong."""
        size, context = _chars(prompt), self.engine.facts.max_tokens
        if size > context * TOKEN_CHARS:
            raise PromptTooLong(size // TOKEN_CHARS, 1, context, "the model's context, at the very least")
        return await self._tokenisers.run(size, self._request, prompt, make)

    def _request(self, prompt: Prompt, make: Callable[[PromptTokens], Request]) -> Request:
        try:
            request = make(self.engine.prompt_tokens(prompt))
        except BaseException as error:
            if isinstance(error, Exception):
                raise
            # A panic in Rust is no Exception, and would end the event loop.
            raise RuntimeError(f"the tokeniser broke: {error!r}") from error
        self.engine.check(request)
        return request

    def flight(self, streamed: bool = True, deadline: float = math.inf) -> CompletionStream:
        """For the completions of one call; see Flight. Raises Busy where the engine is full already."""
        try:
            self._stepper.require_place()
        except EngineFull as full:
            raise self._stepper.refusal(full) from None
        return CompletionStream(self._stepper, self._window, streamed, deadline)


def _chars(prompt: Prompt) -> int:
    match prompt:
        case Plain(text):
            return len(text)
        case Chat(messages):
            return sum(len(message.content) for message in messages)
        case Fill(prefix, suffix):
            return len(prefix) + len(suffix)
