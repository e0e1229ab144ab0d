"""The peer: Infinity over HTTP, in an environment of its own that is built on first use.

Knows how to install, start and ask it; knows nothing of the worker.
"""

import asyncio
import base64
import hashlib
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import orjson

from bench.load import HttpCaller
from bench.processes import ROOT, free_port, listening, running

REQUIREMENTS = Path(__file__).with_name("infinity-requirements.txt")
ENVIRONMENT = ROOT / "var" / "bench" / "infinity"
_QUIET = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
_OPTIONS = ("--engine", "torch", "--no-bettertransformer", "--no-model-warmup")


async def installed() -> Path:
    """The `infinity_emb` command, after building the environment if its requirements have changed.

    Raises RuntimeError if pip fails.
    """
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    stamp = ENVIRONMENT / ".installed"
    if not stamp.exists() or stamp.read_text() != wanted:
        print("building the environment of Infinity; this takes minutes, once", file=sys.stderr)
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        await _run(sys.executable, "-m", "venv", ENVIRONMENT)
        await _run(ENVIRONMENT / "bin" / "pip", "install", "--quiet", "-r", REQUIREMENTS)
        stamp.write_text(wanted)
    return ENVIRONMENT / "bin" / "infinity_emb"


@asynccontextmanager
async def serving(model: Path, device: str, dtype: str = "auto") -> AsyncIterator[int]:
    """Infinity with `model` and its own defaults, as the loopback port it answers on."""
    command, port = await installed(), free_port()
    address = ("--host", "127.0.0.1", "--port", str(port))
    loaded = ("--model-id", model, "--device", device, "--dtype", dtype)
    async with running((command, "v2", *_OPTIONS, *address, *loaded), _QUIET) as process:
        await listening(port, process)
        yield port


@asynccontextmanager
async def callers(port: int, count: int) -> AsyncIterator[list[HttpCaller]]:
    """`count` connections that ask for embeddings."""
    opened = [await HttpCaller.open(port, "/embeddings") for _ in range(count)]
    try:
        yield opened
    finally:
        for caller in opened:
            await caller.close()


def request(text: str, model: Path) -> bytes:
    """One text a request, answered in base64, which is the cheaper of its formats."""
    name = "/".join(model.parts[-2:])
    return orjson.dumps({"input": text, "model": name, "encoding_format": "base64"})


def vector(reply: bytes) -> np.ndarray:
    """The (D,) float32 vector of a reply."""
    return np.frombuffer(base64.b64decode(orjson.loads(reply)["data"][0]["embedding"]), dtype="<f4")


async def _run(*command: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(*map(str, command))
    if await process.wait():
        raise RuntimeError(f"failed: {' '.join(map(str, command))}")
