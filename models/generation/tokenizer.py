"""The tokeniser of a causal language model: text to ids, and what an id is spelt as.

Owns what transformers reads from the model's folder. Knows no prompt format.
"""

import json
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..errors import ModelUnavailable
from .chat import ChatTemplate
from .token_bytes import TokenBytes, spelling_of
from .tokenizer_state import built, with_all_special, without_prefix_space


class GenerationTokenizer:
    """A model's tokeniser. Thread-safe: nothing in it changes."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises ValueError, with a clause, where it does not say how its tokens are put together."""
        # Copies: transformers sets padding and truncation on its own one, and adds CodeLlama a token for its own use.
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        marker = getattr(tokenizer, "fill_token", None)
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != marker]
        state |= {"padding": None, "truncation": None}
        self._whole = built(state)
        self._within = built(with_all_special(without_prefix_space(state)))
        self._within.encode_special_tokens = True
        self.spelling: TokenBytes = spelling_of(self._whole)
        self.vocabulary: int = self._whole.get_vocab_size()
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.before: tuple[int, ...] = self._before()
        self.chat = ChatTemplate(tokenizer, state) if tokenizer.chat_template else None

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

    def encode(self, text: str) -> list[int]:
        """Ids of a text, special tokens that are written in it included, behind those that a text begins with."""
        return [*self.before, *self._whole.encode_batch_fast([text], add_special_tokens=False)[0].ids]

    def encode_within(self, text: str) -> list[int]:
        """Ids of a part of a longer text: no space is put before it, and nothing in it is a special token."""
        return self._within.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def id_of(self, token: str) -> int | None:
        """The id of a token's exact name."""
        return self._whole.token_to_id(token)

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text; the name of a special one, which adds nothing."""
        part = self.spelling.parts.get(token)
        if part is None:
            part = self._whole.id_to_token(token) or ""
        return part if isinstance(part, bytes) else part.encode()

    def token_text(self, token: int) -> str:
        """The same for people: U+FFFD for part of a character."""
        return self.token_bytes(token).decode(errors="replace")

    def _before(self) -> tuple[int, ...]:
        """The special tokens that a text begins with."""
        bare, whole = (self._whole.encode("a", add_special_tokens=special).ids for special in (False, True))
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return tuple(whole[:start])
