"""A tiny deterministic generation engine for tests of everything around one, with faults on demand.

A token a word; each step gives every running request its next one. A prompt is completed with ` 0 1 2 …`, or with what
`scripts` holds for it. Words of a prompt with a meaning: `poison` fails its request, `break` makes a step raise,
`unplugged` has the device fail for good.
"""

import threading
import time
from collections import deque
from dataclasses import dataclass, replace

from models.errors import DeviceFailed
from models.generation.errors import DuplicateRequest, EngineFull, InvalidRequest, PromptTooLong
from models.generation.types import (
    Chat,
    EngineFacts,
    EngineLimits,
    EngineLoad,
    Event,
    Fill,
    Finished,
    FinishReason,
    Piece,
    Plain,
    Prompt,
    PromptTokens,
    Request,
    Scored,
    TokenLogprob,
    Usage,
)

VOCABULARY = 1000
CONTEXT = 5000
LIMITS = EngineLimits()


@dataclass(slots=True)
class _Text:
    request: Request
    words: list[str]
    made: int = 0


class FakeEngine:
    """A GenerationEngine. gate: steps wait while it is cleared; entered: set once one did. aborts: id -> reason.

    scripts: prompt -> words of its completion; after them the model's own end comes, token 0. poisoned: seeds of which
    a request fails. limits: `max_running` and `waiting` hold. steps: how many requests ran
    in each. closed: whether its weights are gone.
    """

    def __init__(
        self,
        model: str = "tiny_coder",
        version: str = "fake-fp32",
        limits: EngineLimits = LIMITS,
        weight_bytes: int = 1_000,
        kv_bytes: int = 500,
    ) -> None:
        self.facts = EngineFacts(
            model=model,
            version=version,
            device="cpu",
            dtype="fp32",
            quantization=None,
            weight_bytes=weight_bytes,
            kv_bytes=kv_bytes,
            max_tokens=CONTEXT,
            vocabulary=VOCABULARY,
            chat=model == "smollm2",
            fill=True,
            max_running=limits.max_running,
            max_requests=limits.max_running + limits.waiting,
        )
        self.load = EngineLoad(kv_bytes=kv_bytes)
        self.limits = limits
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.aborted = threading.Event()
        self.aborts: dict[str, FinishReason] = {}
        self.requests: dict[str, Request] = {}
        self.scripts: dict[str, list[str]] = {}
        self.poisoned: set[int] = set()
        self.steps: list[int] = []
        self.closed = False
        self._steps_until_held: int | None = None
        self._pause_s = 0.0
        self._prompts: dict[tuple[int, ...], str] = {}
        self._waiting: deque[_Text] = deque()
        self._running: dict[str, _Text] = {}
        self._events: list[Event] = []

    def hold_after(self, steps: int) -> None:
        """Let so many more steps that give tokens end, then hold the next."""
        self._steps_until_held = steps
        self.gate.set()

    def release(self, words_s: float = 0.0) -> None:
        """Hold no longer; words_s: what each step takes from now on."""
        self._steps_until_held = None
        self.slow(words_s)
        self.gate.set()

    def slow(self, words_s: float) -> None:
        """Let each step take so long."""
        self._pause_s = words_s

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._running or self._events)

    def prompt_tokens(self, prompt: Prompt, max_tokens: int = 0, num_beams: int = 1) -> PromptTokens:
        if isinstance(prompt, Chat) and not self.facts.chat:
            raise InvalidRequest("messages", f"model {self.facts.model!r} has no chat template")
        text = _text_of(prompt)
        if not text.strip():
            raise InvalidRequest("prompt", "it has no tokens; send some text")
        ids = tuple(1 + sum(word.encode()) % (VOCABULARY - 1) for word in text.split())
        self._prompts[ids] = text
        return PromptTokens(ids, frozenset({0}))

    def check(self, request: Request) -> None:
        if len(request.prompt) + request.max_tokens > CONTEXT:
            raise PromptTooLong(len(request.prompt), request.max_tokens, CONTEXT, "the model's context")
        if unknown := [token for token in request.stop_ids if token >= VOCABULARY]:
            raise InvalidRequest("stop_token_ids", f"token id {unknown[0]} does not exist")
        if unknown := [token for token in request.sampling.logit_bias if token >= VOCABULARY]:
            raise InvalidRequest("logit_bias", f"token id {unknown[0]} does not exist")

    def add(self, request: Request) -> None:
        assert not self.closed
        if request.id in self._running or any(text.request.id == request.id for text in self._waiting):
            raise DuplicateRequest(request.id)
        self.check(request)
        if len(self._waiting) >= self.limits.waiting:
            raise EngineFull(f"{self.limits.waiting} requests wait")
        self.requests[request.id] = request
        prompt = self._prompts[tuple(request.prompt)]
        words = self.scripts.get(prompt) or [f" {number}" for number in range(request.max_tokens)]
        self._waiting.append(_Text(request, words))
        self._note_load()

    def abort(self, request_id: str, reason: FinishReason) -> None:
        self.aborts[request_id] = reason
        self.aborted.set()
        self._waiting = deque(text for text in self._waiting if not self._leaves(text, request_id, reason))
        if text := self._running.pop(request_id, None):
            self._leaves(text, request_id, reason)
        self._note_load()

    def _leaves(self, text: _Text, request_id: str, reason: FinishReason) -> bool:
        if text.request.id != request_id:
            return False
        self._events.append(Finished(request_id, reason, _usage(text)))
        return True

    def step(self) -> list[Event]:
        assert not self.closed
        if self._steps_until_held == 0:
            self.gate.clear()
        self.entered.set()
        assert self.gate.wait(60)
        time.sleep(self._pause_s)
        while self._waiting and len(self._running) < self.limits.max_running:
            text = self._waiting.popleft()
            self._running[text.request.id] = text
        if any("break" in self._prompt(text) for text in self._running.values()):
            raise RuntimeError("the step broke")
        if any("unplugged" in self._prompt(text) for text in self._running.values()):
            raise DeviceFailed("cuda", "CUDA error: device-side assert triggered")
        self.steps.append(len(self._running))
        self.load = replace(self.load, step_decodes=len(self._running))
        if self._running and self._steps_until_held:
            self._steps_until_held -= 1
        for text in list(self._running.values()):
            self._grow(text)
        events, self._events = self._events, []
        self._note_load()
        return events

    def _grow(self, text: _Text) -> None:
        request = text.request
        if "poison" in self._prompt(text) or request.sampling.seed in self.poisoned:
            self._finish(text, Finished(request.id, "error", _usage(text), error=RuntimeError("poisoned")))
            return
        if request.prompt_logprobs and request.sampling.logprobs is not None and not text.made:
            told = (TokenLogprob(token, b"p%d" % token, -0.25) for token in request.prompt)
            self._events.append(Scored(request.id, (replace(next(told), logprob=None), *told)))
        if text.made < min(len(text.words), request.max_tokens):
            word = text.words[text.made]
            if word.strip() in request.stop:
                self._finish(text, Finished(request.id, "stop", _usage(text), word.strip()))
                return
            text.made += 1
            self._events.append(Piece(request.id, word, 1, _logprobs(request, word)))
        if text.made == request.max_tokens:
            self._finish(text, Finished(request.id, "length", _usage(text)))
        elif text.made == len(text.words):
            self._finish(text, Finished(request.id, "stop", _usage(text), 0))

    def _finish(self, text: _Text, finished: Finished) -> None:
        del self._running[text.request.id]
        self._events.append(finished)

    def _prompt(self, text: _Text) -> str:
        return self._prompts[tuple(text.request.prompt)]

    def _note_load(self) -> None:
        self.load = replace(self.load, running=len(self._running), waiting=len(self._waiting))

    def close(self) -> None:
        self.closed = True


def _text_of(prompt: Prompt) -> str:
    match prompt:
        case Plain(text):
            return text
        case Chat(messages):
            return " ".join(message.content for message in messages)
        case Fill(prefix, suffix):
            return f"{prefix} <> {suffix}"


def _usage(text: _Text) -> Usage:
    return Usage(len(text.request.prompt), 0, text.made)


def _logprobs(request: Request, word: str) -> tuple[TokenLogprob, ...]:
    wanted = request.sampling.logprobs
    if wanted is None:
        return ()
    return (
        TokenLogprob(1, word.encode(), -0.5, tuple((number, f"t{number}".encode(), -1.0) for number in range(wanted))),
    )
