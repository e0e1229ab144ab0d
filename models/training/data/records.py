"""What a model is trained on: pairs of texts that belong together, and some that do not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

PairKind: TypeAlias = Literal["docstring", "call", "test", "symbol", "given"]
Split: TypeAlias = Literal["train", "held_out"]


@dataclass(frozen=True, slots=True)
class Pair:
    """anchor, positive: texts that belong together. negatives: texts that do not belong to the anchor.

    file: where the positive stands, relative to the codebase; empty for pairs that a caller gave.
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
    """A text file of a codebase. path: relative to it, with `/`; language: as languages.py names it, or empty."""

    path: str
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function, method or class of a codebase, or a block of a file whose language has no grammar here.

    name: as written; qualified: with its classes before it, joined by a dot. code: all of it, dedented; body: the same
    without its docstring. docstring: its text, without quotes and comment signs; empty where there is none.
    calls: the names that it calls, each once, in order. line: the first one in the file, from 1.
    is_test: whether it is one of the codebase's own tests.
    """

    name: str
    qualified: str
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
    """For each name in `calls`, the statement around its first call, with a line or two before it."""


class Manifest(BaseModel):
    """What is known of a file of pairs.

    digest: SHA-256 over the code, or the pairs, they were made of; sha256: of the file of pairs itself.
    skipped: files that were left out, counted by the reason. secrets: functions and classes that were left out, since
    what looks like a secret stands in them.
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
