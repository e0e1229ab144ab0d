"""Replies of the wire contract in the form of OpenAI's API: whole, and as the chunks of a stream."""

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any
from uuid import uuid4

import orjson

from subjects import GenerateBatchReply, GenerateDone, GenerateReply, TokenFrame
from subjects.errors import Cancelled, from_reply
from subjects.generate import CompletionEnd, Ended, GenerateUsage, TokenLogprob

from ..streams import event
from .requests import ChatRequest, CompletionRequest

Fields = dict[str, Any]


def usage(used: GenerateUsage) -> Fields:
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
    }


def _reason(end: Any) -> str:
    """Its name at OpenAI. Raises the error of a completion that failed, or was cancelled at the worker."""
    if failure := getattr(end, "error", None):
        raise from_reply(failure.code, failure.message, {})
    if end.finish_reason == "cancelled":
        raise Cancelled("the completion was cancelled at the worker")
    return "length" if end.finish_reason == "timeout" else str(end.finish_reason)


class Completions:
    """The form of /v1/completions."""

    object = chunk_object = "text_completion"
    prefix = "cmpl"

    def choice(self, text: str, scored: Sequence[TokenLogprob] | None, reason: str | None, offset: int) -> Fields:
        return {"text": text, "logprobs": self._logprobs(scored, offset), "finish_reason": reason}

    delta = choice

    def _logprobs(self, scored: Sequence[TokenLogprob] | None, offset: int) -> Fields | None:
        if scored is None:
            return None
        offsets = []
        for token in scored:
            offsets.append(offset)
            offset += len(token.token)
        return {
            "tokens": [token.token for token in scored],
            "token_logprobs": [token.logprob for token in scored],
            "top_logprobs": [{other.token: other.logprob for other in token.top} for token in scored],
            "text_offset": offsets,
        }


class Chats:
    """The form of /v1/chat/completions."""

    object, chunk_object = "chat.completion", "chat.completion.chunk"
    prefix = "chatcmpl"

    def choice(self, text: str, scored: Sequence[TokenLogprob] | None, reason: str | None, _offset: int) -> Fields:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(scored), "finish_reason": reason}

    def delta(self, text: str, scored: Sequence[TokenLogprob] | None, reason: str | None, offset: int) -> Fields:
        delta: Fields = {"content": text} if text or not offset else {}
        if not offset:
            delta = {"role": "assistant", **delta}
        return {"delta": delta, "logprobs": self._logprobs(scored), "finish_reason": reason}

    def _logprobs(self, scored: Sequence[TokenLogprob] | None) -> Fields | None:
        if scored is None:
            return None
        content = [{**_scored(token), "top_logprobs": [_scored(other) for other in token.top]} for token in scored]
        return {"content": content, "refusal": None}


def _scored(token: Any) -> Fields:
    return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes}


Form = Completions | Chats


def whole(form: Form, reply: GenerateReply | GenerateBatchReply) -> Fields:
    """The reply to a request that does not stream."""
    return {
        "id": f"{form.prefix}-{uuid4().hex}",
        "object": form.object,
        "created": int(time.time()),
        "model": reply.model,
        "system_fingerprint": reply.version,
        "choices": [
            {"index": place, **form.choice(one.text, one.logprobs, _reason(one), 0)}
            for place, one in enumerate(_completed(reply))
        ],
        "usage": usage(reply.usage),
    }


def _completed(reply: GenerateReply | GenerateBatchReply) -> Iterator[Any]:
    results: Sequence[Any] = reply.results if isinstance(reply, GenerateBatchReply) else [reply]
    for result in results:
        yield from result.choices or [result]


async def chunks(
    form: Form,
    request: CompletionRequest | ChatRequest,
    frames: AsyncGenerator[TokenFrame | GenerateDone, None],
) -> AsyncGenerator[bytes, None]:
    """A stream of the wire contract as OpenAI's events, `[DONE]` last. Closing it closes the stream."""
    stream = _Stream(form, request)
    try:
        async for frame in frames:
            if isinstance(frame, TokenFrame):
                yield stream.piece(frame)
            else:
                for chunk in stream.end(frame):
                    yield chunk
    finally:
        await frames.aclose()
    yield event(b"[DONE]")


class _Stream:
    """What all chunks of a stream share, and how much text each choice has had."""

    def __init__(self, form: Form, request: CompletionRequest | ChatRequest) -> None:
        self._form = form
        self._n = request.n
        self._sent: dict[int, int] = {}
        self._with_usage = request.include_usage
        self._shared: Fields = {
            "id": f"{form.prefix}-{uuid4().hex}",
            "object": form.chunk_object,
            "created": int(time.time()),
            "model": request.model or "default",
        }

    def piece(self, frame: TokenFrame) -> bytes:
        return self._chunk([self._choice(frame, frame.text, frame.logprobs, None)])

    def end(self, done: GenerateDone) -> Iterator[bytes]:
        """The last chunk of each choice, and the one with the usage. Raises the error of a choice that failed."""
        self._shared |= {"model": done.model, "system_fingerprint": done.version}
        ends: Sequence[CompletionEnd | Ended] = done.choices or [done]
        for end in ends:
            yield self._chunk([self._choice(end, "", None, _reason(end))])
        if self._with_usage:
            yield self._chunk([], usage(done.usage))

    def _choice(
        self,
        of: TokenFrame | CompletionEnd | Ended,
        text: str,
        scored: Sequence[TokenLogprob] | None,
        reason: str | None,
    ) -> Fields:
        place = (getattr(of, "index", None) or 0) * self._n + (getattr(of, "choice", None) or 0)
        offset = self._sent.get(place, 0)
        self._sent[place] = offset + len(text)
        return {"index": place, **self._form.delta(text, scored, reason, offset)}

    def _chunk(self, choices: list[Fields], used: Fields | None = None) -> bytes:
        own = {"usage": used} if self._with_usage else {}
        return event(orjson.dumps({**self._shared, "choices": choices, **own}))
