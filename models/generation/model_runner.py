"""One forward pass over the chunks of a step: new tokens in, logits for the next ones out."""

from collections.abc import Sequence
from itertools import takewhile

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..loading.device import device_errors
from ..quantization.int8 import shared_rows
from .attention import Segment, StepAttention, use_cached_attention
from .kv_cache import KVCache
from .sequence import ScheduledChunk

ROUND_ABOVE = 8
"""Steps of more tokens are padded to a multiple of this: oneDNN compiles its products anew for each number of rows."""


class ModelRunner:
    """A causal language model with its keys and values in a cache."""

    def __init__(self, model: PreTrainedModel, cache: KVCache, device: torch.device) -> None:
        use_cached_attention(model)
        self._kernel_rows = shared_rows(model)
        self._model = model
        self._cache = cache
        self._device = device

    def run(self, chunks: Sequence[ScheduledChunk]) -> Tensor:
        """Compute chunks, decodes first -> logits (R, V) float32: for each chunk in order one row per token in
        `scored`, then one for the next token if it `yields_token`.

        Raises OutOfDeviceMemory and whatever the model raises; the cached tokens stay valid.
        """
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        segments: list[Segment] = []
        kept: list[int] = []
        for chunk in chunks:
            sequence, past = chunk.sequence, chunk.sequence.computed
            assert sequence.cache_slice is not None
            start = sequence.cache_slice.start
            kept += (len(ids) + place - 1 - past for place in chunk.scored)
            ids += sequence.tokens[past : past + chunk.length]
            positions += range(past, past + chunk.length)
            slots += range(start + past, start + past + chunk.length)
            segments.append(Segment(start, past, chunk.length))
            if chunk.yields_token:
                kept.append(len(ids) - 1)
        if len(ids) > ROUND_ABOVE:
            padding = -len(ids) % ROUND_ABOVE
            ids += [0] * padding
            positions += [0] * padding
            slots += [self._cache.sink] * padding
        decodes = sum(1 for _ in takewhile(lambda chunk: chunk.length == 1 and chunk.sequence.made > 0, chunks))
        self._kernel_rows.first = decodes if decodes < len(chunks) else len(ids)
        return self._forward(ids, positions, slots, segments, kept)

    def _forward(
        self, ids: list[int], positions: list[int], slots: list[int], segments: list[Segment], kept: list[int]
    ) -> Tensor:
        device = self._device
        with torch.inference_mode(), device_errors(str(device)):
            attention = StepAttention(self._cache, segments, torch.tensor(slots, device=device))
            output = self._model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(kept, dtype=torch.long, device=device),
                step_attention=attention,
            )
            logits: Tensor = output.logits[0].float()
            return logits
