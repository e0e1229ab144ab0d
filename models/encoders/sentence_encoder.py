"""What every encoder over a sentence-transformers module list has: the facts, the way from texts to tokens, and what
comes behind the module that reads them.

Does not know how that first module is fed. Does not choose batches, cut or normalise vectors, or read files.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from ..catalogue import ModelSpec, Quantization
from ..errors import ModelUnavailable, TextTooLong
from ..loading.device import TORCH_DTYPES, memory_errors
from ..quantization.quantize import weight_bytes
from .base import TextOptions, Tokens, Vectors, version_of
from .choices import Choices
from .layers import Layers
from .modules import take_apart
from .tokenise import TextTokenizer


class SentenceEncoder(ABC):
    """An Encoder over a sentence-transformers model, which it takes over and moves to `device`.

    The first module runs in `dtype`, in which it was read; what follows it (pooling, dense layers) in float32. A
    trailing Normalize is left to `finish`, which has to normalise after cutting anyway. Vectors are as long as the
    folder's `truncate_dim` says, where it says so.
    """

    packed: bool

    def __init__(
        self,
        spec: ModelSpec,
        digest: str,
        source: SentenceTransformer,
        device: torch.device,
        dtype: torch.dtype,
        quantization: Quantization | None,
        tokenizer: TextTokenizer,
    ) -> None:
        self.model = spec.id
        self.dtype = next(name for name, known in TORCH_DTYPES.items() if known == dtype)
        self.quantization = quantization
        self.version = version_of(digest, self.dtype, quantization)
        self.device = str(device)
        self.normalizes = spec.normalize
        self.max_tokens = tokenizer.max_tokens
        self.dimensions = int(source.get_embedding_dimension() or 0)
        self.matryoshka: Sequence[int] = spec.matryoshka
        self.prompts: Mapping[str, str] = MappingProxyType(_prompts(spec, source))
        self.tasks: Mapping[str, int] = MappingProxyType(spec.tasks)
        self.notes: tuple[str, ...] = ()
        default_prompt = spec.default_prompt or source.default_prompt_name
        self._choices = Choices(self.prompts, default_prompt, self.tasks, spec.default_task)
        self._tokenizer = tokenizer
        first, *behind = take_apart(source)
        self._first: Any = first.to(device)
        self._head = [module.float().to(device) for module in _without_norm(behind)]
        self._prompt_left_out = any(isinstance(m, Pooling) and not m.include_prompt for m in self._head)
        self._layers = Layers(self._first)
        self.weight_bytes = weight_bytes(torch.nn.ModuleList([self._first, *self._head]))

    def close(self) -> None:
        """See Encoder.close. Whatever still refers to this object or a module then keeps nothing large."""
        for module in torch.nn.ModuleList([self._first, *self._head]).modules():
            module._parameters.clear()
            module._buffers.clear()
        del self._first, self._head, self._tokenizer, self._layers

    def tokenize(self, texts: Sequence[str], options: TextOptions) -> list[Tokens | TextTooLong]:
        """See Encoder.tokenize."""
        self._choices.task(options)  # a model without tasks refuses one
        return self._tokenizer(texts, self._choices.prompt(options), options.truncate)

    def encode(self, batch: Sequence[Tokens], between_layers: Callable[[], None] | None = None) -> Vectors:
        """See Encoder.encode."""
        if not batch:
            return np.empty((0, self.dimensions), dtype=np.float32)
        with torch.inference_mode(), memory_errors(self.device), self._layers.calling(between_layers):
            if self._prompt_left_out:
                runs = [list(run) for _, run in groupby(batch, key=lambda tokens: tokens.prompt_tokens)]
                return np.concatenate([self._forward(run) for run in runs])
            return self._forward(batch)

    def _forward(self, batch: Sequence[Tokens]) -> Vectors:
        features = self._read(batch)
        if self._prompt_left_out:
            features["prompt_length"] = batch[0].prompt_tokens
        for module in self._head:
            features = module(features)
        vectors: Vectors = features["sentence_embedding"][:, : self.dimensions].cpu().numpy()
        return vectors

    @abstractmethod
    def _read(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        """What the first module makes of a batch, in float32, as the modules behind it expect it."""


def check_facts(spec: ModelSpec, source: SentenceTransformer) -> None:
    """Raises ModelUnavailable where the entry states what the model's folder contradicts."""
    poolings = [module.pooling_mode for module in source.children() if isinstance(module, Pooling)]
    facts = {
        "dimensions": (spec.dimensions, [source.get_embedding_dimension()]),
        "pooling": (spec.pooling, poolings),
        "default_prompt": (spec.default_prompt, list(_prompts(spec, source))),
    }
    for field, (stated, found) in facts.items():
        if stated is not None and stated not in found:
            reason = f"its entry says {stated!r}, its folder has {found}; correct `{field}` in its entry"
            raise ModelUnavailable(spec.id, reason)


def _prompts(spec: ModelSpec, source: SentenceTransformer) -> dict[str, str]:
    own = {name: text or "" for name, text in source.prompts.items()}
    return own | spec.prompts


def _without_norm(behind: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """The modules behind the first, without a trailing Normalize."""
    return behind[:-1] if behind and isinstance(behind[-1], Normalize) else behind
