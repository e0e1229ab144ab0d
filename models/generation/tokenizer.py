"""The tokeniser of a causal language model: text to ids, the text of an id, and the model's chat template."""

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ..errors import ModelUnavailable
from ..sandbox.templates import renderer
from ..tokenized_text import TokenizedText, Vocabulary, tokenized
from .token_bytes import TokenBytes, read_token_bytes

CACHED_WORDS = 1000
MAX_SPECIAL_TOKENS = 20_000
_PRIVATE_USE = range(0xF0000, 0x10FFFE)
_TEMPLATE_READS = r"""\(\s*['"]{0}['"]|['"]{0}['"]\s+in\b"""
"""How a template searches a content for a token, as in `content.split('</think>')`."""
State: TypeAlias = Mapping[str, Any]
"""A tokeniser's description, as in tokenizer.json."""


class GenerationTokenizer:
    """A model's tokeniser. Thread-safe: it is immutable."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Raises ValueError, with a clause, if its way of decoding is not supported."""
        # Copies: transformers sets padding and truncation on its own one, and adds CodeLlama a token for its own use.
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        marker = getattr(tokenizer, "fill_token", None)
        state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] != marker]
        state |= {"padding": None, "truncation": None}
        self._whole = _build(state)
        self._within = _build(_with_all_special(_without_prefix_space(state)))
        self._within.encode_special_tokens = True
        self.decoding: TokenBytes = read_token_bytes(self._whole)
        self.vocabulary: int = self._whole.get_vocab_size()
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.prefix_ids: tuple[int, ...] = self._prefix_ids()
        self.chat = ChatTemplate(tokenizer, state) if tokenizer.chat_template else None

    @classmethod
    def read(cls, folder: Path, model: str = "") -> "GenerationTokenizer":
        """Read a model's folder without running any code of it. Raises ModelUnavailable, for `model` or the folder."""
        model = model or folder.name
        advice = "use a copy with its tokenizer.json"
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a broken file may raise anything
            reason = " ".join(str(error).split())[:200]
            raise ModelUnavailable(model, f"its tokeniser cannot be read: {reason}; {advice}") from error
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            raise ModelUnavailable(model, f"its tokeniser has no fast form; {advice}")
        try:
            return cls(tokenizer)
        except ValueError as error:
            raise ModelUnavailable(model, f"{error}; choose another model") from error

    def encode(self, text: str) -> list[int]:
        """Ids of a text with its initial special tokens. Special tokens written in the text are recognised."""
        return list(self.tokenized(text, offsets=False).ids)

    def tokenized(self, text: str, special: bool = True, offsets: bool = True) -> TokenizedText:
        """The same to look at. special: whether to begin with the initial special tokens."""
        return tokenized(self._whole, text, before=self.prefix_ids if special else (), offsets=offsets)

    def vocabulary_of(self, rows: int) -> Vocabulary:
        """The tokens of a model with so many rows in its weights."""
        return Vocabulary(self._whole, rows, lambda token: self.token_bytes(token).decode(errors="replace"))

    def encode_within(self, text: str) -> list[int]:
        """Ids of a part of a longer text: without a space in front, and without special tokens in it."""
        return self._within.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def id_of(self, token: str) -> int | None:
        """The id of a token's exact name."""
        return self._whole.token_to_id(token)

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text. For a special token, which adds nothing, its name."""
        part = self.decoding.parts.get(token)
        if part is None:
            part = self._whole.id_to_token(token) or ""
        return part if isinstance(part, bytes) else part.encode()

    def _prefix_ids(self) -> tuple[int, ...]:
        """The special tokens at the beginning of a text."""
        bare, whole = (self._whole.encode("a", add_special_tokens=special).ids for special in (False, True))
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return tuple(whole[:start])


class ChatTemplate:
    """A tokeniser's chat template: special tokens that the template writes are special, those in a content are text.

    Special are the tokens marked so, and added tokens that occur in the template. One of the latter that the template
    searches a content for, such as `</think>`, stays a token in the assistant's messages.

    `text` puts stand-ins for special tokens into the contents, renders, gives the tokens in the result unguessable
    names, and then restores the contents. `encode` uses a tokeniser that knows the tokens by these names only. So a
    text is split exactly as the model's tokeniser splits it. Thread-safe.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, state: State) -> None:
        template = tokenizer.chat_template
        self._template = tokenizer
        self._source: str = template if isinstance(template, str) else "\n".join(template.values())
        if isinstance(template, str):
            renderer(template).warm()
        added = state["added_tokens"]
        special = [token for token in added if self._is_special(token)]
        if len(special) > MAX_SPECIAL_TOKENS:
            raise ValueError(f"its tokeniser has {len(special)} special tokens, and a chat is searched for each")
        key = secrets.token_hex(8)
        self._names = {
            token["content"]: f"<{key}.{token['id']}>"
            for token in sorted(special, key=lambda token: len(token["content"]), reverse=True)
        }
        self._read = frozenset(
            token["content"]
            for token in special
            if not token["special"] and re.search(_TEMPLATE_READS.format(re.escape(token["content"])), self._source)
        )
        self._beginnings = tuple({name[:end] for name in self._names for end in range(1, len(name))})
        self._endings = tuple({name[start:] for name in self._names for start in range(1, len(name))})
        renamed = [token | {"content": self._names.get(token["content"], token["content"])} for token in added]
        self._tokenizer = _build({**state, "added_tokens": renamed})
        ids = (self._tokenizer.token_to_id(token["content"]) for token in renamed)
        self._ids = dict(zip(ids, (token["id"] for token in added), strict=True))

    def _is_special(self, token: Mapping[str, Any]) -> bool:
        return not token["content"].isspace() and (token["special"] or token["content"] in self._source)

    def role(self, role: str) -> str:
        """The template's own name for a role. Raises ValueError if it has none.

        "developer" becomes "system". A template without tools may still write messages of any role.
        """
        if re.search(f"['\"]{role}['\"]", self._source) or role not in ("developer", "tool"):
            return role
        if role == "developer":
            return "system"
        with suppress(Exception):  # a template is a program of the model's author
            if role in self.text([{"role": role, "content": ""}]):
                return role
        raise ValueError(f"it has no turns of the role {role!r}")

    def text(self, messages: Sequence[Mapping[str, str]], continue_final: bool = False) -> str:
        """Render {"role", "content"} messages for `encode`: up to the beginning of the answer, or with continue_final
        up to the end of the last content.

        Raises what transformers raises, and RenderFailed: the template is the model's own code, run in the sandbox.
        """
        stand_ins = _StandIns(message["content"] for message in messages)
        shown = [{**message, "content": self._hidden(message, stand_ins)} for message in messages]
        text = str(
            self._template.apply_chat_template(
                shown, add_generation_prompt=not continue_final, continue_final_message=continue_final, tokenize=False
            )
        )
        for token, name in self._names.items():
            text = text.replace(token, name)
        return stand_ins.restored(text)

    def encode(self, text: str) -> list[int]:
        """The ids of a result of `text`."""
        ids = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return [self._ids.get(token, token) for token in ids]

    def _hidden(self, message: Mapping[str, str], stand_ins: "_StandIns") -> str:
        """A message's content with stand-ins, so that no special token occurs, begins or ends in it."""
        content, kept = message["content"], self._read if message["role"] == "assistant" else frozenset()
        for token in self._names:
            if token in content and token not in kept:
                content = content.replace(token, stand_ins[token[0]] + token[1:])
        body = content.strip()
        if body.endswith(self._beginnings):
            end = len(content.rstrip()) - 1
            content = content[:end] + stand_ins[content[end]] + content[end + 1 :]
        if body.startswith(self._endings):
            start = len(content) - len(content.lstrip())
            content = content[:start] + stand_ins[content[start]] + content[start + 1 :]
        return content


class _StandIns(dict[str, str]):
    """Characters and their stand-ins, which occur in none of `texts`."""

    def __init__(self, texts: Iterator[str]) -> None:
        taken = set(chain.from_iterable(texts))
        self._free = (character for character in map(chr, _PRIVATE_USE) if character not in taken)

    def __missing__(self, character: str) -> str:
        self[character] = stand_in = next(self._free)
        return stand_in

    def restored(self, text: str) -> str:
        """A text with the original characters."""
        return text.translate({ord(stand_in): character for character, stand_in in self.items()})


def _build(state: State) -> Tokenizer:
    """A tokeniser with a small word cache: where a text is one word, as in SentencePiece-BPE, the default keeps ten
    thousand texts."""
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if resize := getattr(tokenizer.model, "_resize_cache", None):
        resize(CACHED_WORDS)
    return tokenizer


def _with_all_special(state: State) -> State:
    """Mark all added tokens as special, except runs of spaces, which occur in code."""
    added = [token | {"special": token["special"] or not token["content"].isspace()} for token in state["added_tokens"]]
    return {**state, "added_tokens": added}


def _without_prefix_space(state: State) -> State:
    """Remove the steps that put a space in front of a text."""
    return {**state, **{part: _spaceless(state[part]) for part in ("normalizer", "pre_tokenizer")}}


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
