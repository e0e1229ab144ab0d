"""What belongs together in a codebase: a docstring and its code, a call and what it calls, a test and what it tests.

Owns the choice of pairs. Neighbours in a file are no pair: they are about the same, and do different things. Knows no
file on a disk and no split.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .near_duplicates import clone_groups
from .records import Pair, PairKind, Symbol

MOST_OF_ONE = 3
"""Pairs of one kind with the same positive: one popular helper must not fill the data."""
MOST_FILES = 4
"""A name that stands in more files than these, such as `main`, says nothing of what it does."""
MIN_CODE_CHARS = 40
MIN_WORDS = 3
_FAMILIES = {"tsx": "typescript", "javascript": "typescript", "c": "cpp"}
"""Languages whose code calls the other's."""
_EASTERN = "[\u3040-\u30ff\u3400-\u9fff]"
_BOUNDARY = re.compile(rf"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<={_EASTERN})|(?={_EASTERN})")
_WORD = re.compile(r"[^\W\d_]+|\d+")


@dataclass(frozen=True, slots=True)
class PairSource:
    """A pair, and what is known of where it comes from.

    name: the qualified name of the symbol that the positive is. anchor_file, anchor_name: where the anchor stands.
    bodies: the code without docstrings of the symbols whose texts the pair holds, to tell clones of them by; that of
    the positive comes first.
    """

    pair: Pair
    name: str = ""
    anchor_file: str = ""
    anchor_name: str = ""
    bodies: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All by which it could give another pair away."""
        return self.pair.anchor, self.pair.positive, *self.bodies


def words(text: str) -> list[str]:
    """The words of a text or of an identifier, in lower case: `parseHTTPHeader` -> parse, http, header.

    Of Chinese and Japanese each character.
    """
    return [word.lower() for word in _WORD.findall(_BOUNDARY.sub(" ", text))]


def links_of(symbols: Sequence[Symbol]) -> list[PairSource]:
    """All pairs of a codebase, in the order of its symbols; none twice."""
    code = [symbol for symbol in symbols if not symbol.is_test]
    tests = [symbol for symbol in symbols if symbol.is_test]
    known = _Definitions.of(code)
    found: list[PairSource] = [
        *_documented(code),
        *_few_of_each(_called(code, known)),
        *_few_of_each(_tested(tests, known)),
        *_same_elsewhere(code),
    ]
    return list({(link.pair.anchor, link.pair.positive): link for link in reversed(found)}.values())[::-1]


def _documentation(symbol: Symbol) -> PairSource:
    pair = Pair(symbol.docstring, symbol.body, "docstring", symbol.language, symbol.file)
    return PairSource(pair, symbol.qualified, symbol.file, symbol.qualified)


def _link(anchor: str, source: Symbol, target: Symbol, kind: PairKind, *bodies: str) -> PairSource:
    """From a text that stands in one symbol to another, which is the same text in every pair: its body."""
    pair = Pair(anchor, target.body, kind, target.language, target.file)
    return PairSource(pair, target.qualified, source.file, source.qualified, (target.body, *bodies))


# Documentation -> code


def _documented(symbols: Iterable[Symbol]) -> Iterator[PairSource]:
    for symbol in symbols:
        if _says_something(symbol) and len(symbol.body) >= MIN_CODE_CHARS:
            yield _documentation(symbol)


def _says_something(symbol: Symbol) -> bool:
    """Whether a docstring is more than the name over again."""
    said = words(symbol.docstring)
    return len(said) >= MIN_WORDS and len(set(said) - set(words(symbol.qualified))) >= 2


# Calls -> definition, tests -> what they test


@dataclass(frozen=True, slots=True)
class _Definitions:
    """What names stand for, in a family of languages, where they can stand for one thing only."""

    by_name: Mapping[tuple[str, str], Symbol]

    @classmethod
    def of(cls, symbols: Iterable[Symbol]) -> "_Definitions":
        named: dict[tuple[str, str], list[Symbol]] = defaultdict(list)
        for symbol in symbols:
            if symbol.kind != "block":
                named[_family(symbol), symbol.name].append(symbol)
        return cls({key: found[0] for key, found in named.items() if len(found) == 1})

    def called_by(self, symbol: Symbol) -> Iterator[tuple[str, Symbol]]:
        """The names that a symbol calls, with what they stand for; not itself, and nothing trivial."""
        for name in symbol.calls:
            target = self.by_name.get((_family(symbol), name))
            if target is not None and target.qualified != symbol.qualified and _is_distinct(target):
                yield name, target


def _family(symbol: Symbol) -> str:
    return _FAMILIES.get(symbol.language, symbol.language)


def _is_distinct(target: Symbol) -> bool:
    """Whether a call by this name is likely to mean it: `text.startswith(…)` calls nobody's one such method."""
    return len(target.code) >= MIN_CODE_CHARS and (target.kind != "method" or len(words(target.name)) > 1)


def _called(symbols: Iterable[Symbol], known: _Definitions) -> Iterator[PairSource]:
    for symbol in symbols:
        for name, target in known.called_by(symbol):
            site = symbol.call_sites.get(name, "")
            if len(set(words(site)) - set(words(name))) >= MIN_WORDS:
                yield _link(site, symbol, target, "call")


def _tested(tests: Iterable[Symbol], known: _Definitions) -> Iterator[PairSource]:
    for test in tests:
        target = _best_target(test, [target for _, target in known.called_by(test)])
        if target is not None:
            yield _link(test.code, test, target, "test")


def _best_target(test: Symbol, called: Sequence[Symbol]) -> Symbol | None:
    """What a test is named after, of what it calls; or the only thing that it calls."""
    said = set(words(test.qualified))
    named = [target for target in called if set(words(target.name)) <= said]
    if named:
        return max(named, key=lambda target: len(words(target.name)))
    return called[0] if len(called) == 1 else None


def _few_of_each(links: Iterable[PairSource]) -> Iterator[PairSource]:
    seen: Counter[str] = Counter()
    for link in links:
        seen[link.pair.positive] += 1
        if seen[link.pair.positive] <= MOST_OF_ONE:
            yield link


# The same symbol elsewhere


def _same_elsewhere(symbols: Iterable[Symbol]) -> Iterator[PairSource]:
    """Definitions of one name in several files, or languages: each with the next that is no clone of it."""
    named: dict[tuple[str, ...], list[Symbol]] = defaultdict(list)
    for symbol in symbols:
        said = tuple(words(symbol.qualified))
        if symbol.kind != "block" and len(said) >= 2 and not symbol.name.startswith("__"):
            named[said].append(symbol)
    for alike in named.values():
        if 2 <= len({symbol.file for symbol in alike}) <= MOST_FILES:
            yield from _each_with_next(alike)


def _each_with_next(alike: Sequence[Symbol]) -> Iterator[PairSource]:
    groups = clone_groups([symbol.body for symbol in alike])
    firsts = [alike[index] for index, group in enumerate(groups) if group == index]
    for one, other in pairwise(firsts):
        if one.file != other.file and min(len(one.code), len(other.code)) >= MIN_CODE_CHARS:
            yield _link(one.body, one, other, "symbol", one.body)
