"""Ours as a client sees it: a worker and nats-server of their own, and streams read through MLClient."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from subjects.client import MLClient
from subjects.generate import GenerateDone, TokenFrame

from .generation_models import Prompt
from .generation_sample import Sample
from .processes import nats_connection, worker

TIMEOUT_S = 600


@asynccontextmanager
async def serving(folder: Path, dtypes: Sequence[str], threads: int, kv_bytes: int) -> AsyncIterator[MLClient]:
    """A client of a worker that has the model in each dtype, by which it is then named."""
    catalogue = {
        dtype: {
            "kind": "generation",
            "folder": str(folder),
            **({"quantization": "int8"} if dtype == "int8" else {"dtype": dtype}),
        }
        for dtype in dtypes
    }
    settings = {
        "MLBUS_MODELS": ",".join(dtypes),
        "MLBUS_CATALOGUE": json.dumps(catalogue),
        "MLBUS_DEVICE": "cpu",
        "MLBUS_THREADS": str(threads),
        "MLBUS_GENERATION__KV_GB": str(kv_bytes / 1e9),
    }
    async with nats_connection() as nc, worker(nc, settings):
        yield MLClient(nc, timeout_s=TIMEOUT_S)


async def generate(client: MLClient, prompts: Sequence[Prompt], tokens: int, dtype: str) -> Sample:
    """Complete the prompts at once, greedily, each by exactly `tokens`, as streams. Raises ValueError if not."""
    started = time.perf_counter()
    streams = [stream(client, prompt, tokens, dtype, started) for prompt in prompts]
    arrivals = list(await asyncio.gather(*streams))
    return Sample(tokens * len(prompts), time.perf_counter() - started, arrivals)


async def stream(client: MLClient, prompt: Prompt, tokens: int, dtype: str, started: float) -> list[float]:
    """Read one completion -> when each of its pieces came, in seconds since `started`."""
    arrivals: list[float] = []
    frames = client.stream(prompt.text, model=dtype, max_tokens=tokens, min_tokens=tokens, temperature=0.0)
    async for frame in frames:
        if isinstance(frame, TokenFrame):
            arrivals.append(time.perf_counter() - started)
        elif isinstance(frame, GenerateDone):
            made = (frame.usage.prompt_tokens, frame.usage.completion_tokens)
            if made != (len(prompt.ids), tokens):
                raise ValueError(f"expected {len(prompt.ids)} and {tokens} tokens, got {made}")
    return arrivals
