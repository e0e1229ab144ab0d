"""The files beside an ONNX graph that hold its tensors: the names that exporters use, and those that the graph states.

Parses only as much of protobuf's wire format as it takes to find those names.
"""

from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path, PurePosixPath

from .regular_files import open_regular

_INSIDE = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
"""The ONNX messages that can contain a tensor: number of a field -> message in it."""

_KEY, _VALUE = 1, 2
_VARINT, _LENGTH = 0, 2
_FIXED = {1: 8, 5: 4}
"""Wire types; those of a fixed size with their bytes."""


def usual_files(graph: str) -> list[str]:
    """Patterns of a graph and of the data files that exporters write beside it: a protobuf holds at most 2 GB."""
    return [graph, f"{graph}_data*", f"{graph}.data*", str(PurePosixPath(graph).with_suffix(".data"))]


def data_names(graph: Path) -> set[str]:
    """The data files that a graph names, relative to its own folder.

    Takes time in proportion to the number of nodes; the bytes of tensors are skipped. Raises OSError, ValueError where
    the file is no protobuf or is truncated.
    """
    if not graph.stat().st_size:
        return set()
    with open_regular(graph) as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return set(_locations(content))


def _locations(content: mmap) -> Iterator[str]:
    pending = [("Model", 0, len(content))]
    while pending:
        message, start, end = pending.pop()
        fields = _fields(content, start, end)
        if message == "Entry":
            entry = {number: (first, last) for number, first, last in fields}  # of a repeated field the last counts
            if content[slice(*entry.get(_KEY, (0, 0)))] == b"location":
                yield content[slice(*entry.get(_VALUE, (0, 0)))].decode()
        else:
            inside = _INSIDE[message]
            pending += [(inside[number], first, last) for number, first, last in fields if number in inside]


def _fields(content: mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields between two offsets that hold text or a message, as number, start, end. Raises ValueError."""
    while start < end:
        tag, start = _varint(content, start, end)
        kind, after = tag & 7, start
        if kind == _VARINT:
            _, after = _varint(content, start, end)
        elif kind == _LENGTH:
            length, start = _varint(content, start, end)
            after = start + length
        else:
            after += _FIXED.get(kind, len(content))
        if after > end or tag >> 32:
            raise ValueError(f"it is not protobuf, or cut short, at byte {start}")
        if kind == _LENGTH:
            yield tag >> 3, start, after
        start = after


def _varint(content: mmap, start: int, end: int) -> tuple[int, int]:
    """A number, seven bits a byte from the lowest, and the offset after it."""
    number = shift = 0
    for at in range(start, min(start + 10, end)):
        number |= (content[at] & 0x7F) << shift
        if content[at] < 0x80:
            return number, at + 1
        shift += 7
    raise ValueError(f"it is not protobuf, or cut short, at byte {start}")
