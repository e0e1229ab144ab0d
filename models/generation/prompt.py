"""Token ids of a prompt: plain text, the messages of a chat, or a gap to fill in."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from ..catalogue import RepositoryLayout
from ..tokenized_text import TokenizedText
from .errors import InvalidRequest
from .fill import FillTokenizer
from .tokenizer import GenerationTokenizer
from .types import Chat, Fill, Ids, Plain, Prompt, PromptTokens

UNLIMITED = sys.maxsize


class Prompts:
    """Tokenises prompts for a model. Thread-safe. stop_ids: end its texts. vocabulary: rows of its weights. layout: of
    files before a gap, if its entry states one. Raises ValueError, with a clause, if the tokeniser does not have it.

    Special tokens written in a plain prompt are recognised, so that callers can write their own formats. In the
    messages of a chat and around a gap they are ordinary text.
    """

    def __init__(
        self,
        tokenizer: GenerationTokenizer,
        stop_ids: frozenset[int],
        vocabulary: int,
        layout: RepositoryLayout | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self.vocabulary = tokenizer.vocabulary_of(vocabulary)
        self._gaps = FillTokenizer(tokenizer, vocabulary, layout)

    @property
    def chat(self) -> bool:
        """Whether the model has a chat template."""
        return self._tokenizer.chat is not None

    @property
    def fill(self) -> bool:
        """Whether the model has tokens to fill in the middle."""
        return self._gaps.supported

    def __call__(self, prompt: Prompt, room: int = UNLIMITED) -> PromptTokens:
        """Tokenise. room: in tokens, for a gap, whose context is cut to fit.

        Raises InvalidRequest if the model does not support this form, or the prompt is empty, and InvalidOption for an
        id that it does not have.
        """
        match prompt:
            case Plain(text):
                return PromptTokens(self._plain(text), self._stop_ids)
            case Ids(tokens):
                self.vocabulary.require(tokens)
                return PromptTokens(tokens, self._stop_ids)
            case Chat():
                return PromptTokens(self._chat(prompt), self._stop_ids)
            case Fill():
                return self._fill(prompt, room)

    def tokenized(self, prompt: Plain | Chat, special: bool = True, offsets: bool = True) -> TokenizedText:
        """The same to look at; a plain text may be empty. A chat has no offsets, and always its special tokens."""
        if isinstance(prompt, Chat):
            return TokenizedText(self._chat(prompt))
        whole, bos = self._tokenizer.tokenized(prompt.text, special, offsets), self._tokenizer.bos_id
        if special and bos is not None and whole.ids[:2] == [bos, bos]:
            return replace(whole, ids=whole.ids[1:], before=whole.before - 1)
        return whole

    def _plain(self, text: str) -> Sequence[int]:
        if not text:
            raise InvalidRequest("prompt", "it is empty; send some text")
        _require_characters("prompt", text)
        return self.tokenized(Plain(text), offsets=False).ids

    def _chat(self, chat: Chat) -> list[int]:
        template = self._tokenizer.chat
        if template is None:
            raise InvalidRequest("messages", "this model has no chat template; send `prompt` instead")
        if not chat.messages:
            raise InvalidRequest("messages", "there are none")
        for message in chat.messages:
            _require_characters("messages", message.content)
        try:
            messages = [{"role": template.role(each.role), "content": each.content} for each in chat.messages]
            text = template.text(messages, chat.continue_final)
        except Exception as error:  # a template is a program of the model's author
            reason = " ".join(str(error).split())[:200]
            raise InvalidRequest("messages", f"the model's chat template does not take them: {reason}") from error
        return template.encode(text)

    def _fill(self, fill: Fill, room: int) -> PromptTokens:
        _require_characters("prefix", fill.prefix)
        _require_characters("suffix", fill.suffix)
        tokens = self._gaps(fill, room)
        return replace(tokens, stop_ids=self._stop_ids | tokens.stop_ids)


def _require_characters(field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(field, "it holds half of a surrogate pair, which is no character") from None
