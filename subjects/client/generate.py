"""`MLClient`'s completions: the typed calls of `ml.generate` and `ml.generate.batch`. Knows no connection."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias, TypedDict

from typing_extensions import Unpack

from .. import codec, names
from ..generate import (
    ChatMessage,
    GenerateBatchReply,
    GenerateBatchRequest,
    GenerateDone,
    GenerateReply,
    GenerateRequest,
    TokenFrame,
)
from ..stream import DONE, TOKEN
from .caller import Caller, parse, split

Messages: TypeAlias = Sequence[ChatMessage | Mapping[str, Any]]


class GenerateCallOptions(TypedDict, total=False):
    """What every call takes besides its prompt; see GenerateOptions for the meanings."""

    model: str | None
    max_tokens: int
    min_tokens: int
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float] | None
    logprobs: int | None
    n: int
    num_beams: int
    length_penalty: float
    seed: int | None
    stop: str | list[str] | None
    stop_token_ids: list[int] | None
    echo: bool
    continue_final: bool
    timeout_s: float | None


class GenerateCalls:
    """Completions of a prompt: of a text, of `messages` (a chat), or of the gap between `prefix` and `suffix`.

    Each call takes one of the three.
    """

    _caller: Caller

    async def generate(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        prefix: str | None = None,
        suffix: str | None = None,
        **options: Unpack[GenerateCallOptions],
    ) -> GenerateReply:
        """One prompt -> `.text` and how it ended, all at once."""
        fields, timeout_s = split(options)
        request = _request(prompt, messages, prefix, suffix, fields)
        return await self._caller.ask(names.GENERATE, request, GenerateReply, timeout_s)

    async def stream(
        self,
        prompt: str | None = None,
        *,
        messages: Messages | None = None,
        prefix: str | None = None,
        suffix: str | None = None,
        **options: Unpack[GenerateCallOptions],
    ) -> AsyncGenerator[TokenFrame | GenerateDone, None]:
        """One prompt -> its text piece by piece as it is written, then one GenerateDone.

        Closing the iterator early ends the work. Raises Internal where a frame was lost. Nothing is tried again once
        the first piece is there.
        """
        fields, timeout_s = split(options)
        request = _request(prompt, messages, prefix, suffix, fields)
        async with aclosing(self._caller.stream(names.GENERATE, request, timeout_s)) as frames:
            async for frame in frames:
                if frame.event == TOKEN:
                    yield parse(frame.body, TokenFrame)
                elif frame.event == DONE:
                    yield parse(frame.body, GenerateDone)

    async def generate_batch(
        self, prompts: Sequence[str], **options: Unpack[GenerateCallOptions]
    ) -> GenerateBatchReply:
        """Many prompts -> `.results` in order. One that fails has an `error` there and costs the others nothing."""
        fields, timeout_s = split(options)
        request = codec.validate({"prompts": list(prompts), **fields}, GenerateBatchRequest)
        return await self._caller.ask(names.GENERATE_BATCH, request, GenerateBatchReply, timeout_s)


def _request(
    prompt: str | None, messages: Messages | None, prefix: str | None, suffix: str | None, fields: dict[str, Any]
) -> GenerateRequest:
    turns = None if messages is None else list(messages)
    form = {"prompt": prompt, "messages": turns, "prefix": prefix, "suffix": suffix}
    return codec.validate({**form, **fields}, GenerateRequest)
