"""Encoders over a sentence-transformers module list: the common base, and the one for static embeddings."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, groupby
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from ..catalogue import ModelSpec, Quantization
from ..errors import CannotQuantize, ModelUnavailable
from ..loading.device import TORCH_DTYPES, device_errors
from ..quantization.quantize import weight_bytes
from .base import EntryEncoder, Tokens, Vectors, version_of
from .modules import detach_modules, static_embedding
from .tokenise import TextTokenizer

STATIC_MAX_TOKENS = 1_000_000
"""Limit of a static embedding if neither the entry nor the tokeniser states one: the longest text, in characters."""


class SentenceEncoder(EntryEncoder, ABC):
    """An Encoder over a sentence-transformers model, which it takes apart and moves to `device`.

    The first module keeps its dtype; the following ones (pooling, dense layers) run in float32. A trailing Normalize is
    left out, since `finish` normalises after cutting. Vectors are cut to the folder's `truncate_dim`, if it has one.
    """

    def __init__(
        self,
        spec: ModelSpec,
        digest: str,
        source: SentenceTransformer,
        device: torch.device,
        quantization: Quantization | None = None,
    ) -> None:
        """Raises ModelUnavailable, CannotQuantize."""
        check_facts(spec, source)
        dtype, tokenizer = self._prepare(spec, source, device, quantization)
        self.dtype = next(name for name, known in TORCH_DTYPES.items() if known == dtype)
        self.quantization = quantization
        version, prompts = version_of(digest, self.dtype, quantization), named_prompts(spec, source)
        super().__init__(spec, version, tokenizer, prompts, spec.default_prompt or source.default_prompt_name)
        self.device = str(device)
        self.dimensions = int(source.get_embedding_dimension() or 0)
        first, *following = detach_modules(source)
        if following and isinstance(following[-1], Normalize):
            following.pop()
        self._first: Any = first.to(device)
        self._head = [module.float().to(device) for module in following]
        self._excludes_prompt = any(isinstance(m, Pooling) and not m.include_prompt for m in self._head)
        self._layers = LayerHooks(self._first)
        self.weight_bytes = weight_bytes(torch.nn.ModuleList([self._first, *self._head]))

    def close(self) -> None:
        for module in torch.nn.ModuleList([self._first, *self._head]).modules():
            module._parameters.clear()  # frees the weights even if something still refers to a module
            module._buffers.clear()
        del self._first, self._head, self._tokenizer, self._layers

    def encode(self, batch: Sequence[Tokens], between_layers: Callable[[], None] | None = None) -> Vectors:
        if not batch:
            return np.empty((0, self.dimensions), dtype=np.float32)
        with torch.inference_mode(), device_errors(self.device), self._layers.calling(between_layers):
            if self._excludes_prompt:
                groups = [list(group) for _, group in groupby(batch, key=lambda tokens: tokens.prompt_tokens)]
                return np.concatenate([self._forward(group) for group in groups])
            return self._forward(batch)

    def _forward(self, batch: Sequence[Tokens]) -> Vectors:
        features = self._read(batch)
        if self._excludes_prompt:
            features["prompt_length"] = batch[0].prompt_tokens
        for module in self._head:
            features = module(features)
        vectors: Vectors = features["sentence_embedding"][:, : self.dimensions].cpu().numpy()
        return vectors

    @abstractmethod
    def _prepare(
        self, spec: ModelSpec, source: SentenceTransformer, device: torch.device, quantization: Quantization | None
    ) -> tuple[torch.dtype, TextTokenizer]:
        """Check and quantise the first module, in place -> its dtype before that, and the tokeniser."""

    @abstractmethod
    def _read(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        """The first module's features for a batch, in float32."""


class StaticEncoder(SentenceEncoder):
    """An Encoder over a StaticEmbedding (model2vec): a text's vector is the mean of its tokens' vectors.

    A text without tokens gets zeros.
    """

    packed = True

    def _prepare(
        self, spec: ModelSpec, source: SentenceTransformer, device: torch.device, quantization: Quantization | None
    ) -> tuple[torch.dtype, TextTokenizer]:
        if quantization is not None:
            raise CannotQuantize(quantization, "a table of token vectors has no linear layers")
        table = static_embedding(source)
        limit = (table.tokenizer.truncation or {}).get("max_length", STATIC_MAX_TOKENS)
        tokenizer = TextTokenizer(table.tokenizer, min(limit, spec.max_tokens or limit), special=False)
        return table.embedding.weight.dtype, tokenizer

    def _read(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        ids = torch.tensor([i for tokens in batch for i in tokens.ids], dtype=torch.long)
        starts = torch.tensor(list(accumulate(map(len, batch[:-1]), initial=0)))
        features = self._first({"input_ids": ids.to(self.device), "offsets": starts.to(self.device)})
        return {"sentence_embedding": features["sentence_embedding"].float()}


class LayerHooks:
    """Hooks between a model's layers, its longest list of modules. For the thread that runs the model.

    A model without such a list, or with a single layer, has no hooks.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._callback: Callable[[], None] | None = None
        lists = [list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
        for layer in max(lists, key=len, default=[])[1:]:
            layer.register_forward_pre_hook(self._call)

    @contextmanager
    def calling(self, callback: Callable[[], None] | None) -> Iterator[None]:
        """Call `callback` before each layer but the first of the passes in this context.

        It may run the same model in a nested context: a forward pass keeps nothing in the model.
        """
        outer, self._callback = self._callback, callback
        try:
            yield
        finally:
            self._callback = outer

    def _call(self, *_: Any) -> None:
        if self._callback is not None:
            self._callback()


def check_facts(spec: ModelSpec, source: SentenceTransformer) -> None:
    """Raises ModelUnavailable if the entry contradicts the model's folder."""
    poolings = [module.pooling_mode for module in source.children() if isinstance(module, Pooling)]
    facts = {
        "dimensions": (spec.dimensions, [source.get_embedding_dimension()]),
        "pooling": (spec.pooling, poolings),
        "default_prompt": (spec.default_prompt, list(named_prompts(spec, source))),
    }
    for field, (stated, found) in facts.items():
        if stated is not None and stated not in found:
            reason = f"its entry says {stated!r}, its folder has {found}; correct `{field}` in its entry"
            raise ModelUnavailable(spec.id, reason)


def named_prompts(spec: ModelSpec, source: SentenceTransformer) -> dict[str, str]:
    """The prompts of the model's folder and, winning over these, of its entry."""
    return {name: text or "" for name, text in source.prompts.items()} | spec.prompts
