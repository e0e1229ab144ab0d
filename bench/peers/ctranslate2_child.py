"""CTranslate2 in the process of its own environment: completes prompts and notes when each token came.

    python -m bench.peers.ctranslate2_child FOLDER THREADS

The model computes in int8 with float32 beside it, the fastest that it has on a CPU. Needs nothing but its package.
"""

import json
import sys
from pathlib import Path

import ctranslate2  # type: ignore[import-not-found]  # it is in that environment alone

from bench.generation_child import Arrivals, Clock, Ids, serve


class Peer:
    """A converted model."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._generator = ctranslate2.Generator(
            str(folder), device="cpu", compute_type="int8", inter_threads=1, intra_threads=threads
        )
        self._tokens: list[str] = json.loads((folder / "vocabulary.json").read_text("utf-8"))

    def generate(self, prompts: Ids, tokens: int, dtype: str) -> Arrivals:
        """Complete the prompts together, greedily, each by exactly `tokens`; dtype is int8."""
        assert dtype == "int8"
        named = [[self._tokens[token] for token in prompt] for prompt in prompts]
        clock = Clock(len(prompts))

        def note(step: ctranslate2.GenerationStepResult) -> bool:
            clock.tick(step.batch_id)
            return False

        self._generator.generate_batch(
            named, min_length=tokens, max_length=tokens, include_prompt_in_result=False, callback=note
        )
        return clock.arrivals


if __name__ == "__main__":
    serve({"generate": Peer(Path(sys.argv[1]), int(sys.argv[2])).generate})
