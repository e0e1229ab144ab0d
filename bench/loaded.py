"""An embedding model loaded in a process of its own, so that its time and memory are its own too.

The parent half (`Loaded`) writes a command a line and reads back one JSON document; while the model loads it watches
the process's memory. Between commands the process waits for a line, so that it disturbs no other contender.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .processes import ROOT, ended

_WATCH_S = 0.005
_MAX_LINE = 1 << 24

Encode = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True, slots=True)
class Setting:
    """What to load, and by whom. cache: folder of what mlbus remembers between runs; threads: to compute with."""

    by: Literal["mlbus", "sentence-transformers"]
    folder: str
    cache: str
    device: str
    dtype: Literal["fp32", "bf16"]
    threads: int


@dataclass(frozen=True, slots=True)
class Load:
    """What loading took. read_s: of it, reading the weights; bytes of weights, and of memory beyond the start.

    anon_bytes: peak of what the process held for itself (the kernel counts mapped files apart); peak_bytes: of all its
    resident memory, mapped files included; device_bytes: peak on the GPU.
    """

    total_s: float
    read_s: float
    weight_bytes: int
    anon_bytes: int
    peak_bytes: int
    device_bytes: int


class Loaded:
    """A process with a model, seen from the measurement."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def load(self) -> Load:
        """Load the model."""
        start = _memory(self._process.pid)
        asked = asyncio.ensure_future(self._ask("load"))
        anon = 0
        while not asked.done():
            anon = max(anon, _memory(self._process.pid)["RssAnon"])
            await asyncio.wait([asked], timeout=_WATCH_S)  # the kernel keeps no peak of this one
        answer = await asked
        peak = _memory(self._process.pid)["VmHWM"]
        return Load(**answer, anon_bytes=max(0, anon - start["RssAnon"]), peak_bytes=max(0, peak - start["VmRSS"]))

    async def encode(self, texts: Sequence[str], times: int) -> float:
        """Milliseconds that a pass over these texts takes, as one batch: the median of so many."""
        return float((await self._ask("encode", texts=list(texts), times=times))["ms"])

    async def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (B, D) float32, not normalised."""
        answer = await self._ask("vectors", texts=list(texts))
        return np.asarray(answer["vectors"], dtype=np.float32)

    async def matmul(self) -> float:
        """FLOP/s of a large product of matrices in the dtype of the model: the device's peak in practice."""
        return float((await self._ask("matmul"))["flops"])

    async def _ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of a model ended at {command}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def loaded(setting: Setting) -> AsyncIterator[Loaded]:
    """A process that has imported what it needs and waits for commands."""
    command = (sys.executable, "-m", "bench.loaded", json.dumps(asdict(setting)))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe, limit=_MAX_LINE)
    try:
        assert process.stdout is not None
        if not await process.stdout.readline():
            raise RuntimeError("the process of a model did not start")
        yield Loaded(process)
    finally:
        await ended(process)


def _memory(pid: int) -> dict[str, int]:
    """Bytes, by the kernel's names (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    named = (line.split() for line in lines if line.startswith(("VmHWM", "VmRSS", "RssAnon")))
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, _ in named}


def _serve(setting: Setting) -> None:
    import torch

    from models.loading.device import configure_threads

    configure_threads(setting.threads)
    load = {"mlbus": _load_ours, "sentence-transformers": _load_theirs}[setting.by]
    load_model = load(setting)
    _say(ready=True)
    encode: Encode | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["command"] == "load":
            encode, facts = load_model()
            peak = torch.cuda.max_memory_allocated() if setting.device == "cuda" else 0
            _say(**facts, device_bytes=peak)
        elif asked["command"] == "matmul":
            _say(flops=_matmul(setting))
        elif encode is None:
            raise RuntimeError("load first")
        elif asked["command"] == "encode":
            _say(ms=statistics.median(_timed(encode, asked["texts"]) for _ in range(asked["times"])) * 1000)
        else:
            _say(vectors=encode(asked["texts"]).tolist())


def _say(**answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def _timed(encode: Encode, texts: list[str]) -> float:
    started = time.perf_counter()
    encode(texts)
    return time.perf_counter() - started


def _load_ours(setting: Setting) -> Callable[[], tuple[Encode, dict[str, Any]]]:
    """mlbus, which tests what it loads; reading the weights is one of its steps."""
    from models.catalogue import load_catalogue
    from models.encoders.base import TextOptions, Tokens
    from models.loading.load_cache import LoadCache
    from models.loading.loader import LoadOptions, load
    from service.embedding.packing import first_within
    from service.residency.manager import BUDGET_TOKENS

    spec = load_catalogue({"bench": {"kind": "embedding", "folder": setting.folder}}).get("bench")
    device: Literal["cpu", "cuda"] = "cuda" if setting.device == "cuda" else "cpu"
    cache = LoadCache(Path(setting.cache))
    options = LoadOptions(device=device, dtype=setting.dtype, threads=setting.threads, cache=cache)

    def load_model() -> tuple[Encode, dict[str, Any]]:
        steps: list[tuple[str, float]] = []
        started = time.perf_counter()
        encoder = load(spec, options, lambda step: steps.append((step, time.perf_counter())))
        ended_at = time.perf_counter()
        starts = [at for step, at in steps if step == "reading the model"]
        after = [at for _, at in steps if at > starts[0]]

        def encode(texts: list[str]) -> np.ndarray:
            tokens = [item for item in encoder.tokenize(texts, TextOptions()) if isinstance(item, Tokens)]
            parts = []
            while tokens:  # in batches as large as a worker's
                chosen = first_within([len(item) for item in tokens], BUDGET_TOKENS[device])
                parts.append(encoder.encode(tokens[: len(chosen)]))
                tokens = tokens[len(chosen) :]
            return np.concatenate(parts)

        facts = {"total_s": ended_at - started, "read_s": after[0] - starts[0], "weight_bytes": encoder.weight_bytes}
        return encode, facts

    return load_model


def _load_theirs(setting: Setting) -> Callable[[], tuple[Encode, dict[str, Any]]]:
    """sentence-transformers, for which loading is reading; its batch is as large as what it is given."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    from models.loading.device import TORCH_DTYPES
    from models.quantization.quantize import weight_bytes

    disable_progress_bar()  # type: ignore[no-untyped-call]

    def load_model() -> tuple[Encode, dict[str, Any]]:
        started = time.perf_counter()
        dtype = {"dtype": TORCH_DTYPES[setting.dtype]}
        model = SentenceTransformer(setting.folder, device=setting.device, model_kwargs=dtype)
        took = time.perf_counter() - started

        def encode(texts: list[str]) -> np.ndarray:
            vectors = model.encode(texts, batch_size=len(texts), show_progress_bar=False, convert_to_tensor=True)
            found: np.ndarray = vectors.float().cpu().numpy()
            return found

        return encode, {"total_s": took, "read_s": took, "weight_bytes": weight_bytes(model)}

    return load_model


def _matmul(setting: Setting) -> float:
    import torch

    from models.loading.device import TORCH_DTYPES

    size = {"cpu": 2048, "cuda": 8192}[setting.device]
    left, right = (torch.randn(size, size, device=setting.device).to(TORCH_DTYPES[setting.dtype]) for _ in range(2))

    def multiply() -> float:
        started = time.perf_counter()
        product = left @ right
        float(product[0, 0])  # waits for the device
        return time.perf_counter() - started

    return 2 * size**3 / min(multiply() for _ in range(10))


if __name__ == "__main__":
    _serve(Setting(**json.loads(sys.argv[1])))
