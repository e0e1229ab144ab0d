"""Token ids of a prompt: plain text, the messages of a chat, or a gap to fill in."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ..tokenized_text import TokenizedText
from .errors import InvalidRequest
from .tokenizer import GenerationTokenizer
from .types import Chat, Fill, Ids, Plain, Prompt, PromptTokens


@dataclass(frozen=True, slots=True)
class _FillForm:
    """Tokens before the prefix, the suffix and the middle. ends: those that end the middle, where the model has them.
    lead: text put before a prefix that is not empty."""

    prefix: str
    suffix: str
    middle: str
    ends: tuple[str, ...] = ()
    lead: str = ""


_QWEN_ENDS = ("<|endoftext|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|file_separator|>")
"""Qwen's and Gemma's, which use the same form."""
_FILL_FORMS = (
    _FillForm("▁<PRE>", "▁<SUF>", "▁<MID>", ("▁<EOT>",), lead=" "),  # CodeLlama
    _FillForm("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite, tiny_coder
    _FillForm("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", _QWEN_ENDS),
    _FillForm("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek  # noqa: RUF001
)


class Prompts:
    """Tokenises prompts for a model. Thread-safe. stop_ids: end its texts. vocabulary: rows of its weights.

    Special tokens written in a plain prompt are recognised, so that callers can write their own formats. In the
    messages of a chat and around a gap they are ordinary text.
    """

    def __init__(self, tokenizer: GenerationTokenizer, stop_ids: frozenset[int], vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._rows = vocabulary
        self.vocabulary = tokenizer.vocabulary_of(vocabulary)
        forms = (form for form in _FILL_FORMS if len(self._ids((form.prefix, form.suffix, form.middle))) == 3)
        self._form = next(forms, None)

    @property
    def chat(self) -> bool:
        """Whether the model has a chat template."""
        return self._tokenizer.chat is not None

    @property
    def fill(self) -> bool:
        """Whether the model has tokens to fill in the middle."""
        return self._form is not None

    def __call__(self, prompt: Prompt) -> PromptTokens:
        """Tokenise. Raises InvalidRequest if the model does not support this form, or the prompt is empty, and
        InvalidOption for an id that it does not have."""
        match prompt:
            case Plain(text):
                return PromptTokens(self._plain(text), self._stop_ids)
            case Ids(tokens):
                self.vocabulary.require(tokens)
                return PromptTokens(tokens, self._stop_ids)
            case Chat():
                return PromptTokens(self._chat(prompt), self._stop_ids)
            case Fill(prefix, suffix):
                return self._fill(prefix, suffix)

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

    def _fill(self, prefix: str, suffix: str) -> PromptTokens:
        """A space goes before a CodeLlama prefix and none before its suffix, as in CodeLlama's own code; transformers 5
        puts one before both."""
        if self._form is None:
            raise InvalidRequest("prefix", "this model has no tokens to fill in the middle; send `prompt` instead")
        if not prefix and not suffix:
            raise InvalidRequest("prefix", "there is nothing before or behind the gap; send some text")
        _require_characters("prefix", prefix)
        _require_characters("suffix", suffix)
        form, within = self._form, self._tokenizer.encode_within
        ids = [
            *self._tokenizer.prefix_ids,
            *self._ids((form.prefix,)),
            *within(form.lead + prefix if prefix else prefix),
            *self._ids((form.suffix,)),
            *within(suffix),
            *self._ids((form.middle,)),
        ]
        return PromptTokens(ids, self._stop_ids.union(self._ids(form.ends)))

    def _ids(self, tokens: Iterable[str]) -> list[int]:
        """The ids that the model has weights for: transformers adds CodeLlama's to every tokeniser of that class."""
        return [token for token in map(self._tokenizer.id_of, tokens) if token is not None and token < self._rows]


def _require_characters(field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(field, "it holds half of a surrogate pair, which is no character") from None
