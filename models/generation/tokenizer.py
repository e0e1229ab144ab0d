"""The tokeniser of a causal language model: text to ids, what an id is spelt as, and the chat template.

Owns what transformers reads from the model's folder. Knows no prompt format.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..errors import ModelUnavailable
from .spelling import Spelling, spelling_of

CACHED_WORDS = 1000


class GenerationTokenizer:
    """A model's tokeniser. Thread-safe: nothing in it changes."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises ValueError, with a clause, where it does not say how its tokens are put together."""
        self._template = tokenizer
        # Copies: transformers sets padding and truncation on its own one, and adds CodeLlama a token for its own use.
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        marker = getattr(tokenizer, "fill_token", None)
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != marker]
        state |= {"padding": None, "truncation": None}
        self._whole = Tokenizer.from_str(json.dumps(state))
        self._within = Tokenizer.from_str(
            json.dumps(_without_prefix_space(state) | {"added_tokens": _all_special(state)})
        )
        self._within.encode_special_tokens = True
        for part in (self._whole, self._within):
            _bound_cache(part)
        self.spelling: Spelling = spelling_of(self._whole)
        self.vocabulary: int = self._whole.get_vocab_size()
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.before: tuple[int, ...] = self._before()

    @classmethod
    def read(cls, folder: Path, model: str = "") -> "GenerationTokenizer":
        """Read a model's folder, no code of which is run. Raises ModelUnavailable, for `model` or else the folder."""
        model = model or folder.name
        advice = "use a copy with its tokenizer.json"
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a broken file fails in any way
            reason = " ".join(str(error).split())[:200]
            raise ModelUnavailable(model, f"its tokeniser cannot be read: {reason}; {advice}") from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ModelUnavailable(model, f"its tokeniser has no fast form; {advice}")
        try:
            return cls(tokenizer)
        except ValueError as error:
            raise ModelUnavailable(model, f"{error}; choose another model") from error

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat_text` can be asked."""
        return bool(self._template.chat_template)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of a text, special tokens that are written in it included. special: add those that a text begins with."""
        ids = self._whole.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return [*self.before, *ids] if special else ids

    def encode_within(self, text: str) -> list[int]:
        """Ids of a part of a longer text: no space is put before it, and nothing in it is a special token."""
        return self._within.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def id_of(self, token: str) -> int | None:
        """The id of a token's exact name."""
        return self._whole.token_to_id(token)

    def token_text(self, token: int) -> str:
        """A token's own text, for people: U+FFFD for part of a character, and special tokens by name."""
        part = self.spelling.parts.get(token)
        if part is None:
            return self._whole.id_to_token(token) or ""
        return part if isinstance(part, str) else part.decode(errors="replace")

    def chat_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What the chat template makes of {"role", "content"} turns, up to where the answer begins.

        Raises whatever the template does: it is the model's own code, which transformers runs in a sandbox.
        """
        turns = [dict(message) for message in messages]
        return str(self._template.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def _before(self) -> tuple[int, ...]:
        """The special tokens that a text begins with."""
        bare, whole = (self._whole.encode("a", add_special_tokens=special).ids for special in (False, True))
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return tuple(whole[:start])


def _all_special(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The added tokens, all of them marked as special; runs of spaces are code, in which they are to be found."""
    return [token | {"special": token["special"] or not token["content"].isspace()} for token in state["added_tokens"]]


def _bound_cache(tokenizer: Tokenizer) -> None:
    """Where a text is one word, as in SentencePiece-BPE, the cache of words keeps ten thousand texts."""
    if resize := getattr(tokenizer.model, "_resize_cache", None):
        resize(CACHED_WORDS)


def _without_prefix_space(state: dict[str, Any]) -> dict[str, Any]:
    """A tokeniser's description without what puts a space in front of a text."""
    return state | {part: _spaceless(state[part]) for part in ("normalizer", "pre_tokenizer")}


def _spaceless(step: dict[str, Any] | None) -> dict[str, Any] | None:
    match step:
        case None | {"type": "Prepend"}:
            return None
        case {"type": "Sequence"}:
            inner = next(name for name in ("normalizers", "pretokenizers") if name in step)
            return step | {inner: [kept for part in step[inner] if (kept := _spaceless(part)) is not None]}
        case {"type": "Metaspace"}:
            return step | {"prepend_scheme": "never"}
        case {"type": "ByteLevel"}:
            return step | {"add_prefix_space": False}
        case _:
            return step
