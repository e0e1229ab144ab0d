"""From the engine's events to messages of the wire: whole replies, and the frames of a stream."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.generation import types as engine
from models.generation.types import Event, Finished, FinishReason, Piece, Scored
from subjects import generate as wire
from subjects.errors import Internal

from ..errors import INTERNAL, to_wire
from ..served_model import Facts
from .request import GenerationCall, number_of

CHAR_BYTES = 6
"""What a character takes at most, escaped in JSON."""
LOGPROB_BYTES = 512
"""What a token's log-probability takes, generously."""
LEAST_LOGPROB_BYTES = 24
"""And at least."""


@dataclass(slots=True)
class Completion:
    """One completion as it grows.

    end: its own once it has ended, before that the end of one that never began. begun: whether it has had an event.
    """

    number: int
    seed: int
    end: Finished
    begun: bool = False
    ended: bool = False
    text: list[str] = field(default_factory=list)
    logprobs: list[engine.TokenLogprob] = field(default_factory=list)

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        self.text.append(piece.text)
        self.logprobs += piece.logprobs


class Replies:
    """The completions of one call, by number, and the messages about them."""

    def __init__(self, call: GenerationCall, facts: Facts) -> None:
        self.call = call
        self.facts = facts
        self.completions = [
            Completion(number, call.seed_of(number), call.never_begun(number, "cancelled"))
            for number in range(call.count)
        ]

    def pieces(self, events: Iterable[Event]) -> Iterator[tuple[Completion, Piece]]:
        """The text that events add, each piece with its completion; the echo of a prompt comes first.

        Raises the error of the call's one prompt once all its completions have failed; a failure among others is in the
        reply.
        """
        for event in events:
            completion = self.completions[number_of(event.request)]
            failed = isinstance(event, Finished) and event.error is not None
            if not completion.begun and not failed:
                completion.begun = True
                if echo := self.call.echo(completion.number):
                    scores = event.logprobs if isinstance(event, Scored) else ()
                    yield completion, Piece(event.request, echo, 0, scores)
            if isinstance(event, Piece):
                yield completion, event
            elif isinstance(event, Finished):
                completion.end, completion.ended = event, True
                self._require_one()

    def _require_one(self) -> None:
        error = self.completions[0].end.error
        if error is not None and not self.call.batch and all(one.end.error for one in self.completions):
            raise error

    def end_rest(self, reason: FinishReason) -> None:
        """End the completions that never began, for this reason."""
        for completion in self.completions:
            if not completion.ended:
                completion.end = self.call.never_begun(completion.number, reason)

    def whole(self) -> wire.GenerateReply | wire.GenerateBatchReply:
        """The one reply."""
        if self.call.batch:
            results = [self._result(group) for group in self._groups()]
            return wire.GenerateBatchReply(**self._generated(), results=results)
        return wire.GenerateReply(
            **self._generated(), **self._completed(self.completions[0]), choices=self._choices(self.completions)
        )

    def frames(self, piece: Piece, number: int, limit_bytes: int) -> Iterator[wire.TokenFrame]:
        """A piece as frames; each fits a message, and none is empty."""
        top = self.call.options.logprobs
        texts, logprobs = len(piece.text), len(piece.logprobs)
        size = texts * CHAR_BYTES + logprobs * LOGPROB_BYTES * (1 + (top or 0))
        parts = min(texts, 1 + size // max(1, limit_bytes // 2))
        for part in range(parts):
            shown = piece.logprobs[logprobs * part // parts : logprobs * (part + 1) // parts]
            yield wire.TokenFrame(
                text=piece.text[texts * part // parts : texts * (part + 1) // parts],
                logprobs=None if top is None else [_logprob(logprob) for logprob in shown],
                **self._place(number),
            )

    def done(self) -> wire.GenerateDone:
        """The last frame."""
        ends = [
            wire.CompletionEnd(
                **self._ended(completion),
                **self._place(completion.number),
                usage=_usage([completion]),
                error=self._failure(completion),
            )
            for completion in self.completions
        ]
        several = len(ends) > 1 or self.call.batch
        return wire.GenerateDone(
            **self._generated(), **self._ended(self.completions[0]), choices=ends if several else None
        )

    def _groups(self) -> list[Sequence[Completion]]:
        """The completions of each prompt."""
        n = self.call.options.n
        return [self.completions[first : first + n] for first in range(0, len(self.completions), n)]

    def _place(self, number: int) -> dict[str, int]:
        index, choice = divmod(number, self.call.options.n)
        place = {"index": index} if self.call.batch else {}
        return place | {"choice": choice} if self.call.options.n > 1 else place

    def _generated(self) -> dict[str, Any]:
        usages = [_usage(group) for group in self._groups()]
        return {
            "model": self.facts.model,
            "version": self.facts.version,
            "context_files": next(iter(self.call.context_files), None) if self.call.has_context else None,
            "usage": wire.GenerateUsage(
                prompt_tokens=sum(usage.prompt_tokens for usage in usages),
                cached_tokens=sum(usage.cached_tokens for usage in usages),
                completion_tokens=sum(usage.completion_tokens for usage in usages),
            ),
        }

    def _result(self, group: Sequence[Completion]) -> wire.GenerateResult:
        return wire.GenerateResult(
            **self._completed(group[0]),
            usage=_usage(group),
            choices=self._choices(group),
            error=next(filter(None, map(self._failure, group)), None),
        )

    def _choices(self, group: Sequence[Completion]) -> list[wire.Choice] | None:
        if len(group) == 1:
            return None
        return [
            wire.Choice(**self._completed(completion), choice=choice, error=self._failure(completion))
            for choice, completion in enumerate(group)
        ]

    def _completed(self, completion: Completion) -> dict[str, Any]:
        shown = None if self.call.options.logprobs is None else [_logprob(one) for one in completion.logprobs]
        return {**self._ended(completion), "text": "".join(completion.text), "logprobs": shown}

    def _ended(self, completion: Completion) -> dict[str, Any]:
        reason = completion.end.stop_reason
        if isinstance(reason, int) and reason not in (self.call.options.stop_token_ids or ()):
            reason = None  # the model's own end
        return {"finish_reason": completion.end.reason, "stop_reason": reason, "seed": completion.seed}

    def _failure(self, completion: Completion) -> wire.GenerateFailure | None:
        if completion.end.error is None:
            return None
        error = to_wire(completion.end.error) or Internal(INTERNAL)
        return wire.GenerateFailure(code=error.code, message=error.message)


def least_reply_bytes(call: GenerationCall) -> int:
    """What the one reply takes at least, whatever the texts will be."""
    tokens = call.options.min_tokens if call.options.logprobs is not None else 0
    logprob_bytes = LEAST_LOGPROB_BYTES * tokens * (1 + (call.options.logprobs or 0))
    return sum(len(call.echo(number)) + logprob_bytes for number in range(call.count))


def least_bytes(piece: Piece) -> int:
    """What a piece takes in a reply at least."""
    return len(piece.text) + LEAST_LOGPROB_BYTES * sum(1 + len(logprob.top) for logprob in piece.logprobs)


def _usage(group: Sequence[Completion]) -> wire.GenerateUsage:
    """The usage of the completions of one prompt, whose tokens count once."""
    return wire.GenerateUsage(
        prompt_tokens=max(completion.end.usage.prompt for completion in group),
        cached_tokens=group[0].end.usage.cached,
        completion_tokens=sum(completion.end.usage.completion for completion in group),
    )


def _logprob(logprob: engine.TokenLogprob) -> wire.TokenLogprob:
    top = [wire.TopLogprob(**_scored(*alternative)) for alternative in logprob.top]
    return wire.TokenLogprob(**_scored(logprob.id, logprob.text, logprob.logprob), top=top)


def _scored(token: int, text: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": text.decode(errors="replace"), "id": token, "bytes": list(text), "logprob": logprob}
