"""The training pairs of a codebase: a docstring and its code, a call and its target, a test and what it tests.

Neighbours in a file are no pair: they have the same subject, but do different things.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .near_duplicates import duplicate_groups
from .records import Pair, PairKind, Symbol

MAX_PER_POSITIVE = 3
"""Pairs of one kind with the same positive, so that a popular helper does not dominate the data."""
MAX_FILES = 4
"""A name defined in more files, such as `main`, says nothing about what it does."""
MIN_CODE_CHARS = 40
MIN_WORDS = 3
_FAMILIES = {"tsx": "typescript", "javascript": "typescript", "c": "cpp"}
"""Languages that call each other's code."""
_EASTERN = "[\u3040-\u30ff\u3400-\u9fff]"
_BOUNDARY = re.compile(rf"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<={_EASTERN})|(?={_EASTERN})")
_WORD = re.compile(r"[^\W\d_]+|\d+")


@dataclass(frozen=True, slots=True)
class PairSource:
    """A pair and its origin.

    name: the qualified name of the positive's symbol. anchor_file, anchor_name: the file and symbol of the anchor.
    bodies: the code without docstrings of the pair's symbols, that of the positive first, to detect near duplicates.
    """

    pair: Pair
    name: str = ""
    anchor_file: str = ""
    anchor_name: str = ""
    bodies: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts that must not be in both parts of the split."""
        return self.pair.anchor, self.pair.positive, *self.bodies


def words(text: str) -> list[str]:
    """The words of a text or an identifier, in lower case: `parseHTTPHeader` -> parse, http, header.

    Chinese and Japanese characters are words.
    """
    return [word.lower() for word in _WORD.findall(_BOUNDARY.sub(" ", text))]


def pair_sources(symbols: Sequence[Symbol]) -> list[PairSource]:
    """All pairs of a codebase, each once, in the order of its symbols."""
    code = [symbol for symbol in symbols if not symbol.is_test]
    tests = [symbol for symbol in symbols if symbol.is_test]
    known = _Definitions.of(code)
    found: list[PairSource] = [
        *_documented(code),
        *_limited(_called(code, known)),
        *_limited(_tested(tests, known)),
        *_same_elsewhere(code),
    ]
    return list({(source.pair.anchor, source.pair.positive): source for source in reversed(found)}.values())[::-1]


def _reference(anchor: str, origin: Symbol, target: Symbol, kind: PairKind, *bodies: str) -> PairSource:
    pair = Pair(anchor, target.body, kind, target.language, target.file)
    return PairSource(pair, target.qualified_name, origin.file, origin.qualified_name, (target.body, *bodies))


# Documentation -> code


def _documented(symbols: Iterable[Symbol]) -> Iterator[PairSource]:
    for symbol in symbols:
        if _is_informative(symbol) and len(symbol.body) >= MIN_CODE_CHARS:
            pair = Pair(symbol.docstring, symbol.body, "docstring", symbol.language, symbol.file)
            yield PairSource(pair, symbol.qualified_name, symbol.file, symbol.qualified_name)


def _is_informative(symbol: Symbol) -> bool:
    """Whether a docstring says more than the name."""
    found = words(symbol.docstring)
    return len(found) >= MIN_WORDS and len(set(found) - set(words(symbol.qualified_name))) >= 2


# Calls -> definition, tests -> what they test


@dataclass(frozen=True, slots=True)
class _Definitions:
    """The definitions with a name that is unique in their family of languages."""

    by_name: Mapping[tuple[str, str], Symbol]

    @classmethod
    def of(cls, symbols: Iterable[Symbol]) -> "_Definitions":
        named: dict[tuple[str, str], list[Symbol]] = defaultdict(list)
        for symbol in symbols:
            if symbol.kind != "block":
                named[_family(symbol), symbol.name].append(symbol)
        return cls({key: found[0] for key, found in named.items() if len(found) == 1})

    def called_by(self, symbol: Symbol) -> Iterator[tuple[str, Symbol]]:
        """The names that a symbol calls, with their definitions; without itself and indistinct ones."""
        for name in symbol.calls:
            target = self.by_name.get((_family(symbol), name))
            if target is not None and target.qualified_name != symbol.qualified_name and _is_distinct(target):
                yield name, target


def _family(symbol: Symbol) -> str:
    return _FAMILIES.get(symbol.language, symbol.language)


def _is_distinct(target: Symbol) -> bool:
    """Whether a call by this name is likely to mean it; `text.startswith(…)` is unlikely to call the codebase's own."""
    return len(target.code) >= MIN_CODE_CHARS and (target.kind != "method" or len(words(target.name)) > 1)


def _called(symbols: Iterable[Symbol], known: _Definitions) -> Iterator[PairSource]:
    for symbol in symbols:
        for name, target in known.called_by(symbol):
            site = symbol.call_sites.get(name, "")
            if len(set(words(site)) - set(words(name))) >= MIN_WORDS:
                yield _reference(site, symbol, target, "call")


def _tested(tests: Iterable[Symbol], known: _Definitions) -> Iterator[PairSource]:
    for test in tests:
        target = _best_target(test, [target for _, target in known.called_by(test)])
        if target is not None:
            yield _reference(test.code, test, target, "test")


def _best_target(test: Symbol, called: Sequence[Symbol]) -> Symbol | None:
    """The called function that a test is named after, or the only one that it calls."""
    in_name = set(words(test.qualified_name))
    named = [target for target in called if set(words(target.name)) <= in_name]
    if named:
        return max(named, key=lambda target: len(words(target.name)))
    return called[0] if len(called) == 1 else None


def _limited(sources: Iterable[PairSource]) -> Iterator[PairSource]:
    seen: Counter[str] = Counter()
    for source in sources:
        seen[source.pair.positive] += 1
        if seen[source.pair.positive] <= MAX_PER_POSITIVE:
            yield source


# The same symbol elsewhere


def _same_elsewhere(symbols: Iterable[Symbol]) -> Iterator[PairSource]:
    """Definitions of one name in several files or languages: each with the next that is no near duplicate."""
    named: dict[tuple[str, ...], list[Symbol]] = defaultdict(list)
    for symbol in symbols:
        name = tuple(words(symbol.qualified_name))
        if symbol.kind != "block" and len(name) >= 2 and not symbol.name.startswith("__"):
            named[name].append(symbol)
    for alike in named.values():
        if 2 <= len({symbol.file for symbol in alike}) <= MAX_FILES:
            yield from _each_with_next(alike)


def _each_with_next(alike: Sequence[Symbol]) -> Iterator[PairSource]:
    groups = duplicate_groups([symbol.body for symbol in alike])
    firsts = [alike[index] for index, group in enumerate(groups) if group == index]
    for one, other in pairwise(firsts):
        if one.file != other.file and min(len(one.code), len(other.code)) >= MIN_CODE_CHARS:
            yield _reference(one.body, one, other, "symbol", one.body)
