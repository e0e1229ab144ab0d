"""What commands read and write: texts from arguments, standard input and files; vectors to .npy and .parquet files.

A file of vectors is written as they come. It gets its name when it is complete: until then it has a hidden name beside
it, and an error removes it.
"""

import importlib
import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

import numpy as np
import typer

from subjects.message import MAX_TEXT_CHARS
from subjects.names import EncodingFormat
from subjects.vectors import DTYPES, WireArray

STDIN = "-"
ROW_GROUP_TEXTS = 4096


def read_texts(arguments: Sequence[str], file: str | None) -> Iterator[str]:
    """The texts to embed, read lazily: each argument, then each line of the file; `-` is standard input.

    Raises BadParameter if there is none, a line is not a text or a file cannot be read.
    """
    lines = _lines(file) if file else iter(())
    texts = itertools.chain((text_of(argument) for argument in arguments), lines)
    first = next(texts, None)
    if first is None:
        raise typer.BadParameter(
            f"{file} is empty" if file else "give a text, - for standard input, or --file FILE", param_hint="TEXT"
        )
    return itertools.chain([first], texts)


def count_texts(arguments: Sequence[str], file: str | None) -> int | None:
    """The number of texts, after a check of each line; None if some come from standard input."""
    if file == STDIN or STDIN in arguments:
        return None
    return sum(1 for _ in read_texts(arguments, file))


def text_of(argument: str) -> str:
    """The argument; for `-` all of standard input without the line break at its end."""
    if argument != STDIN:
        return argument
    try:
        return sys.stdin.read().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(STDIN, error) from None


def _lines(file: str) -> Iterator[str]:
    try:
        with _standard_input() if file == STDIN else Path(file).open(encoding="utf-8") as stream:
            for number in itertools.count(1):
                line = stream.readline(MAX_TEXT_CHARS + 1)
                if not line:
                    return
                text = line.removesuffix("\n")
                if fault := _fault(text):
                    raise typer.BadParameter(f"line {number} of {file} {fault}", param_hint="--file")
                yield text
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from None


def _standard_input() -> TextIO:
    """A second file object: Python cannot exit while a thread reads sys.stdin, which it closes."""
    return os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8")


def _fault(text: str) -> str:
    """The reason why a line is not a text; empty if it is one."""
    if len(text) > MAX_TEXT_CHARS:
        return f"is longer than {MAX_TEXT_CHARS} characters; split it"
    if not text or text.isspace():
        return "is blank; remove it"
    return "holds a NUL character; remove it" if "\0" in text else ""


def _unreadable(file: str, error: Exception) -> typer.BadParameter:
    return typer.BadParameter(f"{file} cannot be read: {error}", param_hint="--file")


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
