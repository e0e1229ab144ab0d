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
        if self.folder is None:
            return file_sha256(path)
        real = path.resolve()
        stat = real.stat()
        seen = [stat.st_size, stat.st_mtime_ns]
        digests = self._digests()
        known = digests.get(str(real))
        if known and known[:2] == seen:
            return str(known[2])
        digest = file_sha256(real)
        self._write("digests.json", json.dumps({**self._digests(), str(real): [*seen, digest]}).encode())
        return digest

    def is_probed(self, key: str) -> bool:
        """Whether the content of this key has passed its probe (sandbox.probe)."""
        return self.folder is not None and (self.folder / f"proved-{key}").is_file()

    def keep_probed(self, key: str) -> None:
        """Note that it has."""
        if self.folder is not None:
            self._write(f"proved-{key}", b"")

    def vectors(self, key: str) -> Vectors | None:
        """The cached vectors (N, D) float32 of a key, if there are any."""
        if self.folder is None:
            return None
        try:
            found: Vectors = np.load(self.folder / _file_of(key), allow_pickle=False)
        except (OSError, ValueError, EOFError):  # not there, or torn
            return None
        return found

    def keep_vectors(self, key: str, vectors: Vectors) -> None:
        """Cache vectors (N, D) float32 under a key."""
        if self.folder is not None:
            content = io.BytesIO()
            np.save(content, vectors)
            self._write(_file_of(key), content.getvalue())

    def _digests(self) -> dict[str, Any]:
        assert self.folder is not None
        with suppress(OSError, ValueError):
            found = json.loads((self.folder / "digests.json").read_text("utf-8"))
            if isinstance(found, dict):
                return found
        return {}

    def _write(self, name: str, content: bytes) -> None:
        """Replace a file as a whole: another worker on this machine may read or write it."""
        assert self.folder is not None
        with suppress(OSError):  # a full or read-only disk costs time only
            self.folder.mkdir(parents=True, exist_ok=True)
            temporary = self.folder / f"{name}.{os.getpid()}"
            temporary.write_bytes(content)
            temporary.replace(self.folder / name)


def _file_of(key: str) -> str:
    return f"vectors-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
