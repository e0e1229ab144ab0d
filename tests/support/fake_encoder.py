"""A tiny deterministic encoder for tests of everything around a model, with faults on demand.

One token a word. A text's vector depends on its words only. Words with a meaning: `poison` raises, `nan` gives NaN,
`unplugged` has the device fail for good.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from models.encoders.base import PromptsAndTasks, TextOptions, Tokens, Vectors, batch_tokens
from models.errors import DeviceFailed, OutOfDeviceMemory, TextTooLong

DIMENSIONS = 8
MAX_TOKENS = 64
POISON, NAN, LOST = 1, 2, 3
QUERY = PromptsAndTasks(prompts={"query": "query: "})
_IDS = {"poison": POISON, "nan": NAN, "unplugged": LOST}


def word_id(word: str) -> int:
    return _IDS.get(word) or 10 + int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")


def vector_of(ids: Sequence[int]) -> Vectors:
    """The unnormalised vector (DIMENSIONS,) of token ids."""
    return np.sum([np.random.default_rng(i).normal(size=DIMENSIONS) for i in ids], axis=0).astype(np.float32)


class FakeEncoder:
    """An Encoder. memory_tokens: what passes may compute that run at a time, one inside another.

    gate: passes wait while it is cleared. layers: how many a pass has to stop between. batches, ended: the lengths of
    each batch, as it began and as its pass ended. closed: whether its weights are gone.
    """

    version = "fake-fp32"
    dimensions = DIMENSIONS
    max_tokens = MAX_TOKENS
    dtype = "fp32"
    quantization = None
    weight_bytes = 1_000
    device = "cpu"
    normalizes = True
    matryoshka: Sequence[int] = ()
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        model: str = "minilm",
        memory_tokens: int = 1_000_000,
        packed: bool = False,
        names: PromptsAndTasks = QUERY,
        layers: int = 1,
    ) -> None:
        self.model = model
        self.packed = packed
        self.memory_tokens = memory_tokens
        self.layers = layers
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []
        self.ended: list[list[int]] = []
        self.seen: set[int] = set()
        self.closed = False
        self._names = names
        self._held_tokens = 0

    @property
    def prompts(self) -> Mapping[str, str]:
        return self._names.prompts

    @property
    def tasks(self) -> Mapping[str, int]:
        return self._names.tasks

    def tokenize(self, texts: Sequence[str], options: TextOptions) -> list[Tokens | TextTooLong]:
        prompt = self._names.prompt(options)
        return [self._tokens(i, (prompt + text).split(), options) for i, text in enumerate(texts)]

    def _tokens(self, index: int, words: list[str], options: TextOptions) -> Tokens | TextTooLong:
        ids = [word_id(word) for word in words]
        task = self.tasks.get(self._names.task(options) or "")
        if len(ids) <= MAX_TOKENS:
            return Tokens(ids, task=task)
        if options.truncate == "error":
            return TextTooLong(index, len(ids), MAX_TOKENS)
        return Tokens(ids[:MAX_TOKENS] if options.truncate == "end" else ids[-MAX_TOKENS:], truncated=True, task=task)

    def encode(self, batch: Sequence[Tokens], between_layers: Callable[[], None] | None = None) -> Vectors:
        assert not self.closed
        assert len({tokens.task for tokens in batch}) == 1
        self.entered.set()
        assert self.gate.wait(60)
        lengths = [len(tokens) for tokens in batch]
        cost = batch_tokens(self, lengths)
        if self._held_tokens + cost > self.memory_tokens:
            raise OutOfDeviceMemory(self.device)
        self.batches.append(lengths)
        self.seen.update(i for tokens in batch for i in tokens.ids)
        self._held_tokens += cost
        try:
            for _ in range(self.layers - 1 if between_layers else 0):
                between_layers()
        finally:
            self._held_tokens -= cost
        self.ended.append(lengths)
        if any(POISON in tokens.ids for tokens in batch):
            raise RuntimeError("poisoned")
        if any(LOST in tokens.ids for tokens in batch):
            raise DeviceFailed("cuda", "CUDA error: device-side assert triggered")
        return np.stack([vector_of(tokens.ids) * (np.nan if NAN in tokens.ids else 1) for tokens in batch])

    def close(self) -> None:
        self.closed = True
