"""sentence-transformers' own encode in a process of its own: the limit, and the default that others start from.

The parent half (`InProcess`) writes a batch size a line and reads back the seconds that one pass over the texts took.
Between passes the process waits for a line, so that none of its threads disturbs another contender.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .processes import ROOT, ended


@dataclass(frozen=True, slots=True)
class Setting:
    """What to encode and how; `threads` 0 leaves torch's default."""

    model: str
    texts: str
    vectors: str
    device: str
    dtype: str
    threads: int


class InProcess:
    """A running encoder process, seen from the measurement."""

    def __init__(self, process: asyncio.subprocess.Process, setting: Setting, count: int) -> None:
        self._process, self._setting, self._count = process, setting, count

    async def rate(self, batch_size: int) -> float:
        """Texts per second of one pass over all texts in batches of `batch_size`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{batch_size}\n".encode())
        return self._count / float(await self._line())

    def vectors(self) -> np.ndarray:
        """The (B, D) float32 vectors of the last pass."""
        vectors: np.ndarray = np.load(self._setting.vectors)
        return vectors

    async def ready(self) -> float:
        """Wait until the model is loaded; the mean of the texts' lengths in tokens."""
        return float(await self._line())

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the in-process encoder ended")
        return line


@asynccontextmanager
async def encoding(
    model: Path, texts: Sequence[str], device: str, dtype: str, threads: int = 0
) -> AsyncIterator[InProcess]:
    """An encoder process that holds `texts` and waits to be asked; dtype fp32 or bf16."""
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "texts.json"
        stored.write_text(json.dumps(texts))
        setting = Setting(str(model), str(stored), str(Path(folder) / "vectors.npy"), device, dtype, threads)
        command = (sys.executable, "-m", "bench.inprocess", json.dumps(asdict(setting)))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdin=pipe, stdout=pipe)
        try:
            yield InProcess(process, setting, len(texts))
        finally:
            await ended(process)


def _serve(setting: Setting) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    if setting.threads:
        torch.set_num_threads(setting.threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[setting.dtype]
    model = SentenceTransformer(setting.model, device=setting.device, model_kwargs={"dtype": dtype})
    texts = json.loads(Path(setting.texts).read_text())
    encoded = model.tokenizer(texts, truncation=True, max_length=model.max_seq_length, padding=False)
    print(np.mean([len(ids) for ids in encoded["input_ids"]]), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        vectors = model.encode(texts, batch_size=int(line), show_progress_bar=False)
        print(time.perf_counter() - started, flush=True)
        np.save(setting.vectors, vectors.astype(np.float32))


if __name__ == "__main__":
    _serve(Setting(**json.loads(sys.argv[1])))
