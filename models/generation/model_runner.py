"""One pass of the model over a step's work: new tokens in, scores for the next ones out. Knows no queue."""

from collections.abc import Sequence
from itertools import takewhile

import torch
from transformers import PreTrainedModel

from ..loading.device import memory_errors
from ..quantization.int8 import shared_rows
from .attention import Segment, StepAttention, use_cached_attention
from .kv_cache import KVCache
from .scheduler import ScheduledChunk

ROUND_ABOVE = 8
"""Steps of more tokens are rounded up to a multiple of so many: for each new number oneDNN compiles its products."""


class ModelRunner:
    """A causal language model that keeps its keys and values in a cache."""

    def __init__(self, model: PreTrainedModel, cache: KVCache, device: torch.device) -> None:
        use_cached_attention(model)
        self._int8_rows = shared_rows(model)
        self._model = model
        self._cache = cache
        self._device = device

    def run(self, works: Sequence[ScheduledChunk]) -> torch.Tensor:
        """Compute the works' tokens -> (R, V) float32: for each work in order the rows that score its prompt's tokens
        (`Work.scored`), and then one for the next token, where the work `ends` what is there.

        Decodes come first. Raises OutOfDeviceMemory and whatever the model raises; the cache then is as good as before.
        """
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        segments: list[Segment] = []
        kept: list[int] = []
        for work in works:
            sequence, past = work.sequence, work.sequence.computed
            assert sequence.run is not None
            kept += (len(ids) + place - 1 - past for place in work.scored)
            ids += sequence.tokens[past : past + work.length]
            positions += range(past, past + work.length)
            slots += range(sequence.run.start + past, sequence.run.start + past + work.length)
            segments.append(Segment(sequence.run.start, past, work.length))
            if work.ends:
                kept.append(len(ids) - 1)
        if len(ids) > ROUND_ABOVE:
            padding = -len(ids) % ROUND_ABOVE
            ids += [0] * padding
            positions += [0] * padding
            slots += [self._cache.sink] * padding
        decodes = sum(1 for _ in takewhile(_decodes, works))
        self._int8_rows.first = decodes if decodes < len(works) else len(ids)
        return self._forward(ids, positions, slots, segments, kept)

    def _forward(
        self, ids: list[int], positions: list[int], slots: list[int], segments: list[Segment], kept: list[int]
    ) -> torch.Tensor:
        device = self._device
        with torch.inference_mode(), memory_errors(str(device)):
            attention = StepAttention(self._cache, segments, torch.tensor(slots, device=device))
            output = self._model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                use_cache=False,
                logits_to_keep=torch.tensor(kept, dtype=torch.long, device=device),
                step_attention=attention,
            )
            logits: torch.Tensor = output.logits[0].float()
            return logits


def _decodes(work: ScheduledChunk) -> bool:
    return work.length == 1 and work.sequence.made > 0
