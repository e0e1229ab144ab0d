"""The torch encoder: any sentence-transformers model, fed with our own batches, packed or padded.

Owns the forward pass from token ids to pooled vectors. Built on the module list of sentence-transformers, so that
a model is pooled as its authors meant. Does not choose batches, cut or normalise vectors, or read files.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from ..catalogue import ModelSpec
from ..device import TORCH_DTYPES
from ..errors import ModelUnavailable, OutOfDeviceMemory, TextTooLong, UnknownPrompt
from .base import TextOptions, Tokens, Vectors
from .packed import packed_features, unpacked, use_packed_attention
from .tokenise import TextTokenizer

LONGEST_BELIEVED = 1_000_000  # tokenisers without a maximum length state an astronomical one


class TorchEncoder:
    """An Encoder over a sentence-transformers model, which it takes over: moved to `device`, cast to `dtype`.

    The transformer runs in `dtype`; what follows it (pooling, dense layers) in float32. A trailing Normalize is
    left to `finish`, which has to normalise after cutting anyway.
    """

    def __init__(
        self,
        spec: ModelSpec,
        digest: str,
        source: SentenceTransformer,
        device: torch.device,
        dtype: str,
        packed: bool = False,
    ) -> None:
        modules = list(source.children())
        _check_facts(spec, source)
        transformer = _text_transformer(spec, modules)
        self.model = spec.id
        self.version = f"{digest[:12]}-{dtype}"
        self.dtype = dtype
        self.device = str(device)
        self.normalizes = isinstance(modules[-1], Normalize)
        self.max_tokens = _max_tokens(spec, source)
        self.dimensions = int(source.get_embedding_dimension() or 0)
        self.prompts: Mapping[str, str] = MappingProxyType(_prompts(spec, source))
        self.notes: tuple[str, ...] = ()
        self._default_prompt = spec.default_prompt or source.default_prompt_name
        self._tokenizer = TextTokenizer(transformer.tokenizer.backend_tokenizer, self.max_tokens)
        self._pad_id = int(transformer.tokenizer.pad_token_id or 0)
        self._transformer = transformer.to(device=device, dtype=TORCH_DTYPES[dtype])
        self._head = [m.to(device) for m in (modules[1:-1] if self.normalizes else modules[1:])]
        self.packed = packed
        if packed:
            use_packed_attention(transformer.auto_model)
        self._prompt_left_out = any(isinstance(m, Pooling) and not m.include_prompt for m in self._head)

    def tokenize(self, texts: Sequence[str], options: TextOptions) -> list[Tokens | TextTooLong]:
        """See Encoder.tokenize."""
        return self._tokenizer(texts, self._prompt(options), options.truncate)

    def encode(self, batch: Sequence[Tokens]) -> Vectors:
        """See Encoder.encode."""
        if not batch:
            return np.empty((0, self.dimensions), dtype=np.float32)
        if self._prompt_left_out:
            runs = [list(run) for _, run in groupby(batch, key=lambda tokens: tokens.prompt_tokens)]
            return np.concatenate([self._forward(run) for run in runs])
        return self._forward(batch)

    def _prompt(self, options: TextOptions) -> str:
        if options.prompt is not None:
            return options.prompt
        name = self._default_prompt if options.prompt_name is None else options.prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            raise UnknownPrompt(name, tuple(self.prompts))
        return self.prompts[name]

    def _forward(self, batch: Sequence[Tokens]) -> Vectors:
        with torch.inference_mode(), _memory_errors(self.device):
            features = self._packed(batch) if self.packed else self._transformer(self._padded(batch))
            output = self._transformer.module_output_name
            features[output] = features[output].float()
            if self._prompt_left_out:
                features["prompt_length"] = batch[0].prompt_tokens
            for module in self._head:
                features = module(features)
            vectors: Vectors = features["sentence_embedding"].cpu().numpy()
        return vectors

    def _packed(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        """What the transformer makes of a batch without padding, as the modules behind it expect it."""
        features = self._transformer(packed_features(batch, self.device))
        output = self._transformer.module_output_name
        hidden, mask = unpacked(features[output], features.pop("packed_lengths"))
        return {output: hidden, "attention_mask": mask}

    def _padded(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        """Token ids (B, T) int64, padded on the right, and their mask (B, T), left out where nothing is padded."""
        lengths = [len(tokens) for tokens in batch]
        ids = np.full((len(batch), max(lengths)), self._pad_id, dtype=np.int64)
        for row, tokens in zip(ids, batch, strict=True):
            row[: len(tokens)] = tokens.ids
        features: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(self.device)}
        if min(lengths) < max(lengths):
            mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
            features["attention_mask"] = torch.from_numpy(mask.astype(np.int64)).to(self.device)
        return features


def _text_transformer(spec: ModelSpec, modules: list[torch.nn.Module]) -> Any:
    """The transformer that begins the module list. Raises ModelUnavailable where it is none that reads text."""
    first = modules[0]
    if not isinstance(first, Transformer) or not hasattr(first.tokenizer, "backend_tokenizer"):
        reason = f"it begins with {type(first).__name__}, and only transformers with a Rust tokeniser are served."
        raise ModelUnavailable(spec.id, reason + " Choose another model.")
    return first


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
            reason = f"its entry says {stated!r}, its folder has {found}; correct `{field}` in its entry."
            raise ModelUnavailable(spec.id, reason)


def _prompts(spec: ModelSpec, source: SentenceTransformer) -> dict[str, str]:
    own = {name: text or "" for name, text in source.prompts.items()}
    return own | spec.prompts


def _max_tokens(spec: ModelSpec, source: SentenceTransformer) -> int:
    stated = [limit for limit in (source.max_seq_length, spec.max_tokens) if limit and limit < LONGEST_BELIEVED]
    if not stated:
        raise ModelUnavailable(spec.id, "it states no maximum length; give `max_tokens` in its entry.")
    return min(stated)


@contextmanager
def _memory_errors(device: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfDeviceMemory(device) from error
    except RuntimeError as error:  # the CPU allocator has no class of its own
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfDeviceMemory(device) from error
