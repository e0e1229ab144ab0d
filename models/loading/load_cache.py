"""Cache between runs: digests of weight files, reference vectors, and which models have passed their probe.

So gigabytes are hashed, and a model is read in float32 for its reference vectors, only once. A file is recognised by
its path, size and time of change. Losing the folder costs time only.
"""

import hashlib
import io
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..encoders.base import Vectors
from ..weights.model_files import file_sha256


class LoadCache:
    """A folder of cached facts; None caches nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def sha256(self, path: Path) -> str:
        """SHA-256 of a file in hexadecimal; the file is read only if it has changed since the last time."""
        real = path.resolve()
        stat = real.stat()
        seen = [stat.st_size, stat.st_mtime_ns]
        known = self._digests().get(str(real))
        if known and known[:2] == seen:
            return str(known[2])
        digest = file_sha256(real)
        self._write("digests.json", json.dumps({**self._digests(), str(real): [*seen, digest]}).encode())
        return digest

    def is_probed(self, key: str) -> bool:
        """Whether the content of this key has passed its probe (sandbox.probe)."""
        return self._read(f"proved-{key}") is not None

    def keep_probed(self, key: str) -> None:
        """Note that it has."""
        self._write(f"proved-{key}", b"")

    def vectors(self, key: str) -> Vectors | None:
        """The cached vectors (N, D) float32 of a key, if there are any."""
        with suppress(ValueError, EOFError):  # torn
            if content := self._read(_file_of(key)):
                found: Vectors = np.load(io.BytesIO(content), allow_pickle=False)
                return found
        return None

    def keep_vectors(self, key: str, vectors: Vectors) -> None:
        """Cache vectors (N, D) float32 under a key."""
        content = io.BytesIO()
        np.save(content, vectors)
        self._write(_file_of(key), content.getvalue())

    def _digests(self) -> dict[str, Any]:
        with suppress(ValueError):
            found = json.loads(self._read("digests.json") or b"")
            if isinstance(found, dict):
                return found
        return {}

    def _read(self, name: str) -> bytes | None:
        with suppress(OSError):
            return (self.folder / name).read_bytes() if self.folder else None
        return None

    def _write(self, name: str, content: bytes) -> None:
        """Replace a file as a whole: another worker on this machine may read or write it."""
        if self.folder is None:
            return
        with suppress(OSError):  # a full or read-only disk costs time only
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f"{name}.{os.getpid()}"
            temporary.write_bytes(content)
            temporary.replace(self.folder / name)


def _file_of(key: str) -> str:
    return f"vectors-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
