"""`MLClient`'s completions: the typed calls of `ml.generate` and `ml.generate.batch`."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict

from typing_extensions import Unpack

from .. import routes
from ..generate import GenerateBatchReply, GenerateDone, GenerateReply, TokenFrame
from ..generate_fields import ChatMessage, ContextFile
from .transport import Transport, form_of, forms_of, split

Messages: TypeAlias = Sequence[ChatMessage | Mapping[str, Any]]


class GenerateCallOptions(TypedDict, total=False):
    """The options of every call besides its prompt; see GenerateOptions for the meanings."""

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
    context: Sequence[ContextFile | Mapping[str, str]] | None
    path: str | None
    repository: str | None
    timeout_s: float | None


class PromptCallOptions(GenerateCallOptions, total=False):
    """The same and, where there is no text to continue, a chat or the texts around a gap."""

    messages: Messages | None
    prefix: str | None
    suffix: str | None


class GenerateCalls:
    """Completions of a text or its token ids, of `messages` (a chat), or of the gap between `prefix` and `suffix`."""

    _transport: Transport

    async def generate(
        self, prompt: str | Sequence[int] | None = None, **options: Unpack[PromptCallOptions]
    ) -> GenerateReply:
        """One prompt -> `.text` and how it ended, in one reply."""
        return await self._transport.ask(routes.GENERATE, *split(_fields(prompt, options)))

    def stream(
        self, prompt: str | Sequence[int] | None = None, **options: Unpack[PromptCallOptions]
    ) -> AsyncGenerator[TokenFrame | GenerateDone, None]:
        """One prompt -> its text piece by piece as it is generated, then one GenerateDone.

        Closing the iterator early cancels the work. Raises Internal if a frame was lost. There are no retries once the
        first piece has come.
        """
        return self._transport.stream(routes.GENERATE, *split(_fields(prompt, options)))

    async def generate_batch(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], **options: Unpack[GenerateCallOptions]
    ) -> GenerateBatchReply:
        """Many prompts -> `.results` in order. One that fails has an `error` there and costs the others nothing."""
        return await self._transport.ask(routes.GENERATE_BATCH, *split({**forms_of(prompts, "prompts"), **options}))

    def stream_batch(
        self, prompts: Sequence[str] | Sequence[Sequence[int]], **options: Unpack[GenerateCallOptions]
    ) -> AsyncGenerator[TokenFrame | GenerateDone, None]:
        """The same as a stream, with `index` in each frame; see `stream`."""
        return self._transport.stream(routes.GENERATE_BATCH, *split({**forms_of(prompts, "prompts"), **options}))


def _fields(prompt: str | Sequence[int] | None, options: PromptCallOptions) -> dict[str, Any]:
    messages = options.get("messages")
    return {**options, **form_of(prompt, "prompt"), "messages": None if messages is None else list(messages)}
