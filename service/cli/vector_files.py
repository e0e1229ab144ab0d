"""Files of vectors, written as the vectors come: .npy for numpy, .parquet for tables.

A file gets its name when it is complete. Until then it has a hidden name beside it, and an error removes it.
"""

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import typer

from subjects.names import EncodingFormat
from subjects.vectors import DTYPES, WireArray

ROW_GROUP_TEXTS = 4096


class VectorFile(Protocol):
    def write(self, texts: Sequence[str], vectors: WireArray) -> None:
        """Append texts (B) and their vectors (B, W), in the dtype of the file's encoding."""

    def describe(self, facts: Mapping[str, str]) -> None:
        """Store facts about all vectors, if the format has a place for them."""

    def close(self) -> None: ...


@contextmanager
def vector_file(path: Path, encoding: EncodingFormat) -> Iterator[VectorFile]:
    """A file to write to, of the kind that the suffix names. Raises BadParameter for an unknown suffix."""
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise typer.BadParameter(f"{path} must end in {' or '.join(_KINDS)}", param_hint="--out")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}; make it first", param_hint="--out")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as stream, closing(kind(stream, encoding)) as vectors:
            yield vectors
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class NpyFile:
    """A numpy array (N, W). The number of rows is written into the header at the end."""

    def __init__(self, stream: BinaryIO, encoding: EncodingFormat) -> None:
        self._stream = stream
        self._dtype = DTYPES[encoding]
        self._shape = (0, 0)

    def write(self, texts: Sequence[str], vectors: WireArray) -> None:
        rows, width = self._shape[0] + len(vectors), vectors.shape[1]
        if not self._shape[0]:
            self._shape = (0, width)
            self._write_header()
        self._stream.write(np.ascontiguousarray(vectors, self._dtype).data)
        self._shape = (rows, width)

    def describe(self, facts: Mapping[str, str]) -> None:
        """Nothing: a .npy file has no place for them."""

    def close(self) -> None:
        self._stream.seek(0)
        self._write_header()

    def _write_header(self) -> None:
        """numpy pads the header, so that the number of rows can grow in place."""
        header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._stream, header)


class ParquetFile:
    """Columns index, text and embedding (a list of fixed size), in row groups of about ROW_GROUP_TEXTS texts."""

    def __init__(self, stream: BinaryIO, encoding: EncodingFormat) -> None:
        try:
            self._pa, self._parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
        except ImportError:
            raise typer.BadParameter(
                "writing .parquet needs pyarrow: .venv/bin/python -m pip install pyarrow; .npy needs nothing",
                param_hint="--out",
            ) from None
        self._stream = stream
        self._dtype = DTYPES[encoding]
        self._writer: Any = None
        self._written = 0
        self._texts: list[str] = []
        self._vectors: list[WireArray] = []

    def write(self, texts: Sequence[str], vectors: WireArray) -> None:
        self._texts += texts
        self._vectors.append(vectors)
        if len(self._texts) >= ROW_GROUP_TEXTS:
            self._write_group()

    def describe(self, facts: Mapping[str, str]) -> None:
        if self._texts:
            self._write_group()
        self._writer.add_key_value_metadata(dict(facts))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write_group(self) -> None:
        pa, rows = self._pa, np.concatenate(self._vectors)
        last = self._written + len(self._texts)
        flat = pa.array(rows.astype(self._dtype, copy=False).ravel())
        columns = {
            "index": pa.array(np.arange(self._written, last, dtype=np.int64)),
            "text": pa.array(self._texts, pa.string()),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]),
        }
        table = pa.table(columns)
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._stream, table.schema)
        self._writer.write_table(table)
        self._written, self._texts, self._vectors = last, [], []


_KINDS: dict[str, type[NpyFile] | type[ParquetFile]] = {".npy": NpyFile, ".parquet": ParquetFile}
