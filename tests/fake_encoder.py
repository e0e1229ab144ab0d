"""A tiny deterministic encoder for tests of everything around a model, with faults on demand.

One token a word. A text's vector depends on its words only. Words with a meaning: `poison` raises, `nan` gives NaN.
"""

import hashlib
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from models.encoders.base import TextOptions, Tokens, Vectors, batch_tokens
from models.errors import OutOfDeviceMemory, TextTooLong, UnknownPrompt

DIMENSIONS = 8
MAX_TOKENS = 64
POISON, NAN = 1, 2
_IDS = {"poison": POISON, "nan": NAN}


def word_id(word: str) -> int:
    return _IDS.get(word) or 10 + int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")


def vector_of(ids: Sequence[int]) -> Vectors:
    """The unnormalised vector (DIMENSIONS,) of token ids."""
    return np.sum([np.random.default_rng(i).normal(size=DIMENSIONS) for i in ids], axis=0).astype(np.float32)


class FakeEncoder:
    """An Encoder. gate: forward passes wait while it is cleared. batches: the lengths of each batch that ran."""

    version = "fake-fp32"
    dimensions = DIMENSIONS
    max_tokens = MAX_TOKENS
    dtype = "fp32"
    device = "cpu"
    normalizes = True
    prompts: Mapping[str, str] = {"query": "query: "}
    notes: tuple[str, ...] = ()

    def __init__(self, model: str = "minilm", memory_tokens: int = 1_000_000, packed: bool = False) -> None:
        self.model = model
        self.packed = packed
        self.memory_tokens = memory_tokens
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []
        self.seen: set[int] = set()

    def tokenize(self, texts: Sequence[str], options: TextOptions) -> list[Tokens | TextTooLong]:
        if options.prompt_name not in (None, *self.prompts):
            raise UnknownPrompt(str(options.prompt_name), tuple(self.prompts))
        prompt = options.prompt or self.prompts.get(options.prompt_name or "", "")
        return [self._tokens(i, (prompt + text).split(), options) for i, text in enumerate(texts)]

    def _tokens(self, index: int, words: list[str], options: TextOptions) -> Tokens | TextTooLong:
        ids = [word_id(word) for word in words]
        if len(ids) <= MAX_TOKENS:
            return Tokens(ids)
        if options.truncate == "error":
            return TextTooLong(index, len(ids), MAX_TOKENS)
        return Tokens(ids[:MAX_TOKENS] if options.truncate == "end" else ids[-MAX_TOKENS:], truncated=True)

    def encode(self, batch: Sequence[Tokens]) -> Vectors:
        self.entered.set()
        assert self.gate.wait(60)
        lengths = [len(tokens) for tokens in batch]
        if batch_tokens(self, lengths) > self.memory_tokens:
            raise OutOfDeviceMemory(self.device)
        self.batches.append(lengths)
        self.seen.update(i for tokens in batch for i in tokens.ids)
        if any(POISON in tokens.ids for tokens in batch):
            raise RuntimeError("poisoned")
        return np.stack([vector_of(tokens.ids) * (np.nan if NAN in tokens.ids else 1) for tokens in batch])
