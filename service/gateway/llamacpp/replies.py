"""Frames of the wire contract as the answers of llama.cpp's server: whole, and as the events of a stream."""

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import orjson

from subjects import GenerateDone, TokenFrame
from subjects.errors import Cancelled, from_reply
from subjects.generate import CompletionEnd, Ended, GenerateUsage

from ..streams import event
from .requests import InfillRequest, LlamaCompletionRequest

Fields = dict[str, Any]
Asked = LlamaCompletionRequest | InfillRequest
Frames = AsyncGenerator[TokenFrame | GenerateDone, None]


async def whole(asked: Asked, frames: Frames) -> Fields | list[Fields]:
    """The answer to a request that does not stream: an object, or a list of them for several completions."""
    answer = _Answer(asked)
    async for _ in answer.pieces(frames):
        pass
    return answer.ends[0] if len(answer.ends) == 1 else answer.ends


async def events(asked: Asked, frames: Frames) -> AsyncGenerator[bytes, None]:
    """A stream as llama.cpp's events. Closing it closes the stream of frames."""
    answer = _Answer(asked)
    pieces = answer.pieces(frames)
    try:
        async for piece in pieces:
            yield event(orjson.dumps(piece))
    finally:
        await pieces.aclose()
    for end in answer.ends:
        yield event(orjson.dumps({**end, "content": ""} if "content" in end else end))


class _Answer:
    """What came so far. ends: the last message of each completion, once all have come."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._completions: dict[int, _Completion] = {}
        self._of_each = asked.options()["n"]
        self._began = time.perf_counter()
        self.ends: list[Fields] = []

    async def pieces(self, frames: Frames) -> AsyncGenerator[Fields, None]:
        """The new text of each frame; its end comes early if all completions have reached one of llama.cpp's limits."""
        done: GenerateDone | None = None
        try:
            async for frame in frames:
                if isinstance(frame, GenerateDone):
                    done = frame
                elif not self._asked.warms_up:
                    completion = self._of(frame)
                    if text := completion.add(frame.text):
                        yield completion.piece(text)
                    if self._are_cut():
                        break
        finally:
            await frames.aclose()
        self._end(done)

    def _are_cut(self) -> bool:
        expected = self._of_each * self._asked.number
        return len(self._completions) == expected and all(one.is_cut for one in self._completions.values())

    def _of(self, frame: TokenFrame | CompletionEnd | Ended) -> "_Completion":
        place = (getattr(frame, "index", None) or 0) * self._of_each + (getattr(frame, "choice", None) or 0)
        return self._completions.setdefault(place, _Completion(place, self._asked, self._began))

    def _end(self, done: GenerateDone | None) -> None:
        """Note all ends. Raises the error of a completion that failed."""
        if done is not None:
            ends: Sequence[CompletionEnd | Ended] = done.choices or [done]
            for end in ends:
                self._of(end).end = end
        for _, completion in sorted(self._completions.items()):
            self.ends.append(completion.last(done))


class _Completion:
    """One completion. is_cut: whether it has reached one of llama.cpp's limits, that of time or that of indentation."""

    def __init__(self, place: int, asked: Asked, began: float) -> None:
        self._place = place
        self._asked = asked
        self._began = began
        self._first = self._last = 0.0
        self._frames = 0
        self._text = ""
        self.is_cut = False
        self.end: CompletionEnd | Ended | None = None

    def add(self, text: str) -> str:
        """Take a frame's text -> what is to be sent of it."""
        if self.is_cut:
            return ""
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self._frames += 1
        before, self._text = len(self._text), self._text + text
        over_at = outdented(self._text, self._asked.n_indent, max(0, self._text.rfind("\n", 0, before)))
        if over_at is not None:
            self._text, self.is_cut = self._text[:over_at], True
        limit_ms = self._asked.t_max_predict_ms
        if limit_ms > 0 and "\n" in self._text and (self._last - self._first) * 1000 > limit_ms:
            self.is_cut = True
        return self._text[before:]

    def piece(self, text: str) -> Fields:
        return {"index": self._place, "content": text, "tokens": [], "stop": False}

    def last(self, done: GenerateDone | None) -> Fields:
        """Its last message. done: absent if it ended early. Raises the error of a completion that failed."""
        used = getattr(self.end, "usage", None) or (done.usage if done else None)
        predicted = 0 if self._asked.warms_up else used.completion_tokens if used and not self.is_cut else self._frames
        fields: Fields = {
            "index": self._place,
            "content": self._text,
            "tokens": [],
            "stop": True,
            "model": done.model if done else self._asked.model or "default",
            **self._reason(),
            "has_new_line": "\n" in self._text,
            "truncated": False,
            "tokens_predicted": predicted,
            **({"tokens_evaluated": used.prompt_tokens, "tokens_cached": used.cached_tokens} if used else {}),
            "timings": self._timings(used, predicted),
        }
        wanted = self._asked.response_fields
        return fields if wanted is None else _only(fields, wanted)

    def _reason(self) -> Fields:
        if failure := getattr(self.end, "error", None):
            raise from_reply(failure.code, failure.message, {})
        how, word = "limit", None
        if not (self.is_cut or self.end is None or self._asked.warms_up):
            if self.end.finish_reason == "cancelled":
                raise Cancelled("the completion was cancelled at the worker")
            if self.end.finish_reason == "stop":
                word = self.end.stop_reason
                how = "word" if isinstance(word, str) else "eos"
        return {"stop_type": how, "stopping_word": word if isinstance(word, str) else ""}

    def _timings(self, used: GenerateUsage | None, predicted: int) -> Fields:
        """As the gateway sees them: the prompt takes until the first text comes."""
        now = time.perf_counter()
        first, last = self._first or now, self._last or now
        computed = {"prompt": used.prompt_tokens - used.cached_tokens} if used else {}
        took_ms = {"prompt": (first - self._began) * 1000, "predicted": (last - first) * 1000}
        told: Fields = {}
        for part, number in {**computed, "predicted": predicted}.items():
            told |= {
                f"{part}_n": number,
                f"{part}_ms": took_ms[part],
                f"{part}_per_token_ms": took_ms[part] / max(1, number),
                f"{part}_per_second": number * 1000 / max(took_ms[part], 0.001),
            }
        return told


def outdented(text: str, n_indent: int, begin: int = 0) -> int | None:
    """Where a line after a line break has other than white space before n_indent columns; None: nowhere.

    The place is behind that line's own indentation. begin: where to look for the first line break.
    """
    start = text.find("\n", begin) + 1
    while n_indent and start:
        indentation = 0
        while text[start + indentation : start + indentation + 1] in (" ", "\t"):
            indentation += 1
        if indentation < n_indent and start + indentation < len(text):
            return start + indentation
        start = text.find("\n", start) + 1
    return None


def _only(fields: Fields, wanted: Sequence[str]) -> Fields:
    """The fields that are wanted; one of an object inside keeps its path as its name."""
    kept = {}
    for path in wanted:
        value: Any = fields
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            kept[path] = value
    return kept
