"""`MLClient`'s tokens: the typed calls of `ml.tokenize` and `ml.detokenize`."""

from collections.abc import Sequence
from typing import TypedDict

from typing_extensions import Unpack

from .. import routes
from ..tokenize import DetokenizeReply, TokenizeReply
from .generate import Messages
from .transport import Transport, split


class TokenizeCallOptions(TypedDict, total=False):
    """The options of a call besides its text; see TokenizeRequest for the meanings."""

    model: str | None
    continue_final: bool
    add_special_tokens: bool
    task: str | None
    prompt_name: str | None
    prompt: str | None
    count_only: bool
    timeout_s: float | None


class TokenCalls:
    """The tokens of texts, and the texts of tokens."""

    _transport: Transport

    async def tokenize(
        self,
        text: str | Sequence[str] | None = None,
        *,
        messages: Messages | None = None,
        **options: Unpack[TokenizeCallOptions],
    ) -> TokenizeReply:
        """One text, several, or a chat -> `.counts` and `.results`, one for each, in order."""
        texts = [text] if isinstance(text, str) else text
        form = {"text": texts and list(texts), "messages": None if messages is None else list(messages)}
        return await self._transport.ask(routes.TOKENIZE, *split({**form, **options}))

    async def detokenize(
        self,
        tokens: Sequence[int] | Sequence[Sequence[int]],
        *,
        model: str | None = None,
        skip_special_tokens: bool = True,
        timeout_s: float | None = None,
    ) -> DetokenizeReply:
        """The ids of one text, or of several -> `.texts`, in order."""
        ids = [each if isinstance(each, int) else list(each) for each in tokens]
        asked = {"tokens": ids, "model": model, "skip_special_tokens": skip_special_tokens}
        return await self._transport.ask(routes.DETOKENIZE, asked, timeout_s)
