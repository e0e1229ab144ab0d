"""The torch encoder: any sentence-transformers model, fed with our own batches, packed or padded.

Owns the forward pass from token ids to pooled vectors. Built on the module list of sentence-transformers, so that
a model is pooled as its authors meant. Does not choose batches, cut or normalise vectors, or read files.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from ..catalogue import ModelSpec, Quantization
from ..device import TORCH_DTYPES, memory_errors
from ..errors import ModelUnavailable, TextTooLong
from ..quantize import quantize, weight_bytes
from .base import TextOptions, Tokens, Vectors, version_of
from .choices import Choices
from .layers import Layers
from .modules import take_apart, text_transformer
from .packed import packed_features, unpacked, use_packed_attention
from .tokenise import TextTokenizer

LONGEST_BELIEVED = 1_000_000  # tokenisers without a maximum length state an astronomical one


class TorchEncoder:
    """An Encoder over a sentence-transformers model, which it takes over: quantised if asked, moved to `device`.

    The transformer runs in the dtype in which it was read; what follows it (pooling, dense layers) in float32. A
    trailing Normalize is left to `finish`, which has to normalise after cutting anyway. Vectors are as long as
    the folder's `truncate_dim` says, where it says so.
    """

    def __init__(
        self,
        spec: ModelSpec,
        digest: str,
        source: SentenceTransformer,
        device: torch.device,
        quantization: Quantization | None = None,
    ) -> None:
        _check_facts(spec, source)
        transformer = text_transformer(spec, source)
        self.model = spec.id
        self.dtype = _name_of(transformer.auto_model.dtype)
        self.quantization = quantization
        self.version = version_of(digest, self.dtype, quantization)
        self.device = str(device)
        self.normalizes = spec.normalize
        self.max_tokens = _max_tokens(spec, source)
        self.dimensions = int(source.get_embedding_dimension() or 0)
        self.matryoshka: Sequence[int] = spec.matryoshka
        self.prompts: Mapping[str, str] = MappingProxyType(_prompts(spec, source))
        self.tasks: Mapping[str, int] = MappingProxyType(spec.tasks)
        self.notes: tuple[str, ...] = ()
        default_prompt = spec.default_prompt or source.default_prompt_name
        self._choices = Choices(self.prompts, default_prompt, self.tasks, spec.default_task)
        self._tokenizer = TextTokenizer(transformer.tokenizer.backend_tokenizer, self.max_tokens)
        self._padding_left = transformer.tokenizer.padding_side == "left"
        self._pad_id = int(transformer.tokenizer.pad_token_id or 0)
        if quantization is not None:
            quantize(transformer.auto_model, quantization, device)
        self._transformer = transformer.to(device)
        self._head = [module.float().to(device) for module in _tail(take_apart(source))]
        self._prompt_left_out = any(isinstance(m, Pooling) and not m.include_prompt for m in self._head)
        self._layers = Layers(transformer.auto_model)
        self._padded_attention = transformer.auto_model.config._attn_implementation
        self.weight_bytes = weight_bytes(torch.nn.ModuleList([self._transformer, *self._head]))
        self.packed = False

    def pack(self) -> None:
        """Run batches without padding from now on. Raises whatever a model raises that cannot."""
        use_packed_attention(self._transformer.auto_model)
        self.packed = True

    def pad(self) -> None:
        """Run padded batches again."""
        self._transformer.auto_model.set_attn_implementation(self._padded_attention)
        self.packed = False

    def close(self) -> None:
        """See Encoder.close. Whatever still refers to this object or a module then keeps nothing large."""
        for module in torch.nn.ModuleList([self._transformer, *self._head]).modules():
            module._parameters.clear()
            module._buffers.clear()
        del self._transformer, self._head, self._tokenizer, self._layers

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
        features = self._packed(batch) if self.packed else self._transformer(self._padded(batch))
        output = self._transformer.module_output_name
        features[output] = features[output].float()
        if self._prompt_left_out:
            features["prompt_length"] = batch[0].prompt_tokens
        for module in self._head:
            features = module(features)
        vectors: Vectors = features["sentence_embedding"][:, : self.dimensions].cpu().numpy()
        return vectors

    def _packed(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        """What the transformer makes of a batch without padding, as the modules behind it expect it."""
        features = self._transformer(packed_features(batch, self._pad_id, self.device))
        output = self._transformer.module_output_name
        hidden, mask = unpacked(features[output], features.pop("packed_lengths"), len(batch))
        return {output: hidden, "attention_mask": mask}

    def _padded(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        """Token ids (B, T) int64 and, where any row is padded, their mask and positions (B, T) int64."""
        lengths = np.array([len(tokens) for tokens in batch])
        longest = int(lengths.max())
        starts = longest - lengths if self._padding_left else np.zeros_like(lengths)
        ids = np.full((len(batch), longest), self._pad_id, dtype=np.int64)
        for row, start, tokens in zip(ids, starts, batch, strict=True):
            row[start : start + len(tokens)] = tokens.ids
        features = {"input_ids": ids}
        if int(lengths.min()) < longest:
            positions = np.arange(longest)[None, :] - starts[:, None]
            features["attention_mask"] = ((positions >= 0) & (positions < lengths[:, None])).astype(np.int64)
            if self._padding_left:
                features["position_ids"] = positions.clip(min=0)
        return {name: torch.from_numpy(value).to(self.device) for name, value in features.items()}


def _name_of(dtype: torch.dtype) -> str:
    return next(name for name, known in TORCH_DTYPES.items() if known == dtype)


def _tail(modules: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """The modules behind the transformer, without a trailing Normalize."""
    return modules[1:-1] if isinstance(modules[-1], Normalize) else modules[1:]


def _check_facts(spec: ModelSpec, source: SentenceTransformer) -> None:
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


def _max_tokens(spec: ModelSpec, source: SentenceTransformer) -> int:
    limits = (source.max_seq_length, spec.max_tokens, _positions(source))
    stated = [limit for limit in limits if limit and limit < LONGEST_BELIEVED]
    if not stated:
        raise ModelUnavailable(spec.id, "it states no maximum length; give `max_tokens` in its entry")
    return min(stated)


def _positions(source: SentenceTransformer) -> int | None:
    """How many tokens a model has learned positions for; None where it has no table of them."""
    for name, module in source.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # Those with a padding position count behind it.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None
