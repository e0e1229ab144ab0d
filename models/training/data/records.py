"""The records of training data: source files, symbols, pairs and the manifest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

PairKind: TypeAlias = Literal["docstring", "call", "test", "symbol", "given"]
Split: TypeAlias = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class Pair:
    """anchor, positive: texts that belong together. negatives: texts that do not belong to the anchor.

    file: of the positive, relative to the codebase; empty for pairs that a caller gave.
    """

    anchor: str
    positive: str
    kind: PairKind
    language: str = ""
    file: str = ""
    negatives: tuple[str, ...] = ()
    split: Split = "train"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A text file of a codebase. path: relative to it, with `/`; language: see languages.py."""

    path: str
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function, method or class of a codebase, or a block of a file that was not parsed.

    name: as written; qualified_name: with its classes before it, joined by dots. line: its first one, from 1. code:
    dedented; body: the same without docstring. docstring: its text, without quotes and comment signs, or empty.
    calls: the names called, each once, in order; call_sites: for each, the statement around its first call, with a line
    or two before it. is_test: whether it is one of the codebase's tests.
    """

    name: str
    qualified_name: str
    kind: Literal["function", "method", "class", "block"]
    language: str
    file: str
    line: int
    code: str
    body: str
    docstring: str = ""
    calls: tuple[str, ...] = ()
    is_test: bool = False
    call_sites: Mapping[str, str] = field(default_factory=dict)


class Manifest(BaseModel):
    """The description of a file of pairs.

    digest: SHA-256 over the code, or the given pairs, they were made from; sha256: of the file of pairs itself.
    skipped: the number of files left out, by reason. secrets: functions and classes left out because of a secret.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    commit: str | None = None
    digest: str
    sha256: str
    seed: int
    files: int = 0
    skipped: dict[str, int] = {}
    secrets: int = 0
    pairs: int
    held_out: int
    kinds: dict[str, int]
    languages: dict[str, int]
