"""A tokeniser's description, as in tokenizer.json: what is changed in it, and a tokeniser made of it."""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from tokenizers import Tokenizer

CACHED_WORDS = 1000

State: TypeAlias = Mapping[str, Any]


def built(state: State) -> Tokenizer:
    """The tokeniser. Where a text is one word, as in SentencePiece-BPE, its cache of words would keep ten thousand."""
    tokenizer = Tokenizer.from_str(json.dumps(state))
    if resize := getattr(tokenizer.model, "_resize_cache", None):
        resize(CACHED_WORDS)
    return tokenizer


def with_all_special(state: State) -> State:
    """With all added tokens marked as special; runs of spaces are code, in which they are to be found."""
    added = [token | {"special": token["special"] or not token["content"].isspace()} for token in state["added_tokens"]]
    return {**state, "added_tokens": added}


def without_prefix_space(state: State) -> State:
    """Without what puts a space in front of a text."""
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
