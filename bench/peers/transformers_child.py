"""transformers in a process of its own: `generate`, sequential or in a batch, and its continuous batching.

    python -m bench.peers.transformers_child FOLDER THREADS

int8 is torchao's weight-only quantisation beside bf16, as transformers' documentation has it. Each way keeps models of
its own, because continuous batching changes the attention of the one that it gets.
"""

import sys
import warnings
from typing import Any

import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, TorchAoConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.utils import logging

from bench.generation_child import Arrivals, Clock, Ids, serve

PAGE_TOKENS = 32
MAX_TOKENS, MAX_REQUESTS = 8192, 32
"""What its cache holds, and how many it runs together; left alone it sizes both by the memory of a GPU."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}


class _Ticks(StoppingCriteria):
    """Notes each step of `generate`, and never stops it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        self._clock.tick_all()
        return torch.zeros(len(input_ids), dtype=torch.bool)  # type: ignore[return-value]


class Peer:
    """The models of a repository, in each dtype that was asked for, loaded when they first are."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._models: dict[tuple[str, str], Any] = {}

    def generate(self, prompts: Ids, tokens: int, dtype: str) -> Arrivals:
        """Complete prompts of the same length as one batch, greedily, each by exactly `tokens`."""
        model, ids = self._model("generate", dtype), torch.tensor(prompts)
        clock = Clock(len(prompts))
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=_greedy(tokens),
                stopping_criteria=[_Ticks(clock)],
            )
        return clock.arrivals

    def continuous(self, prompts: Ids, tokens: int, dtype: str) -> Arrivals:
        """Complete prompts by continuous batching, greedily, each by exactly `tokens`."""
        model = self._model("continuous", dtype)
        config = ContinuousBatchingConfig(
            page_size=PAGE_TOKENS,
            num_blocks=MAX_TOKENS // PAGE_TOKENS,
            max_batch_tokens=MAX_TOKENS // 8,
            max_requests_per_batch=MAX_REQUESTS,
        )
        clock = Clock(len(prompts))
        outputs = model.generate_batch(
            [list(prompt) for prompt in prompts],
            generation_config=_greedy(tokens),
            continuous_batching_config=config,
            record_timestamps=True,
            persistent_manager=True,
            warmup=False,
            max_new_tokens=tokens,
        )
        return [clock.since_start(output.timestamps or []) for output in outputs.values()]

    def _model(self, way: str, dtype: str) -> Any:
        if (way, dtype) not in self._models:
            quantized = TorchAoConfig(Int8WeightOnlyConfig()) if dtype == "int8" else None
            model = AutoModelForCausalLM.from_pretrained(
                self._folder, dtype=_DTYPES[dtype], quantization_config=quantized, attn_implementation="sdpa"
            )
            self._models[way, dtype] = model
        return self._models[way, dtype]


def _greedy(tokens: int) -> GenerationConfig:
    return GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(int(sys.argv[2]))
    peer = Peer(sys.argv[1])
    serve({"generate": peer.generate, "continuous": peer.continuous})
