"""Our engine alone in a process: steps in a loop, with no bus, no event loop and no thread but its own.

    python -m bench.generation_engine FOLDER THREADS KV_BYTES

It is loaded and set up as a worker does it. Also measures how fast this machine reads weights.
"""

import sys
import time
from pathlib import Path
from typing import Literal

import torch

from models.catalogue import Quantization, load_catalogue
from models.generation.engine import Engine
from models.generation.types import EngineLimits, Finished, Request, Sampling
from models.loading.device import configure_threads
from models.loading.loader import LoadOptions, load_generator
from service.residency.loader import CHUNK_TOKENS

from .generation_child import Arrivals, Clock, Ids, serve

PRODUCT_BYTES = 1 << 28


def load_engine(folder: Path, dtype: str, kv_bytes: int) -> Engine:
    """An engine as a worker sets it up; dtype fp32, bf16 or int8, which is weight-only."""
    quantization: Quantization | None = "int8" if dtype == "int8" else None
    stated: Literal["fp32", "auto", "bf16"] = "fp32" if dtype == "fp32" else "bf16" if dtype == "bf16" else "auto"
    spec = load_catalogue({"bench": {"kind": "generation", "folder": str(folder)}}).get("bench")
    loaded = load_generator(spec, LoadOptions(device="cpu", dtype=stated, quantization=quantization))
    return Engine(loaded, EngineLimits(kv_bytes=kv_bytes, chunk_tokens=CHUNK_TOKENS["cpu"]))


class Contender:
    """Engines for a repository, one for each dtype that was asked for, loaded when they first are."""

    def __init__(self, folder: Path, kv_bytes: int) -> None:
        self._folder = folder
        self._kv_bytes = kv_bytes
        self._engines: dict[str, Engine] = {}

    def generate(self, prompts: Ids, tokens: int, dtype: str) -> Arrivals:
        """Complete the prompts together, greedily, each by exactly `tokens`; arrivals are of pieces of text."""
        if dtype not in self._engines:
            self._engines[dtype] = load_engine(self._folder, dtype, self._kv_bytes)
        engine, clock, made = self._engines[dtype], Clock(len(prompts)), 0
        for place, prompt in enumerate(prompts):
            engine.add(Request(str(place), prompt, tokens, min_tokens=tokens, sampling=Sampling(temperature=0.0)))
        while not engine.is_idle:
            for event in engine.step():
                if isinstance(event, Finished):
                    made += event.usage.completion
                else:
                    clock.tick(int(event.request))
        if made != tokens * len(prompts):
            raise RuntimeError(f"the engine made {made} tokens of {tokens * len(prompts)}")
        return clock.arrivals


def read_rate() -> float:
    """Bytes a second at which weights are read: those of a large matrix, times a vector."""
    width = 1 << 13
    matrix, vector = torch.ones(PRODUCT_BYTES // width // 4, width), torch.ones(width)

    def seconds() -> float:
        started = time.perf_counter()
        torch.mv(matrix, vector)
        return time.perf_counter() - started

    return PRODUCT_BYTES / min(seconds() for _ in range(10))


if __name__ == "__main__":
    configure_threads(int(sys.argv[2]))
    contender = Contender(Path(sys.argv[1]), int(sys.argv[3]))
    serve({"generate": contender.generate, "read_rate": read_rate})
