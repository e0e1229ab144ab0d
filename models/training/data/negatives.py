"""Hard negatives: for each pair, texts that are similar to its positive but wrong.

Found by words (BM25) and by the vectors of the model to be trained. Those too near to the anchor may be right, and are
not used.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import bm25s
import numpy as np
import numpy.typing as npt

from ...encoders.base import Encoder
from ..encoding import ANCHOR_PROMPTS, DOCUMENT_PROMPTS, unit_vectors
from .near_duplicates import duplicate_groups
from .pairs import PairSource, words

NEIGHBOURS = 16
"""Candidates of each search."""
MARGIN = 0.95
"""Of the positive's score: a candidate with a higher one may be right too."""
BLOCK = 8192
"""Pairs whose documents are searched together, so that the time is linear in the number of pairs."""
EMBEDDED_CHARS = 1024
"""Of a text, for its vector: about what a training reads."""

Scores: TypeAlias = npt.NDArray[np.float32]
Search: TypeAlias = Callable[[Sequence[str], Sequence[str]], Iterator[Scores]]
"""documents (D), anchors -> for each anchor the scores (D,) of the documents."""


def with_negatives(
    sources: Sequence[PairSource], count: int, seed: int, encoder: Encoder | None = None
) -> list[PairSource]:
    """Give each training pair without negatives up to `count` from the training part, random ones if none is near.

    encoder: the model to be trained; None: search by words only. Raises OutOfDeviceMemory.
    """
    chosen = [
        index for index, source in enumerate(sources) if source.pair.split == "train" and not source.pair.negatives
    ]
    given = list(sources)
    if not count or not chosen:
        return given
    corpus = _Corpus.of([sources[index] for index in chosen])
    searches: list[Search] = [_by_words] if encoder is None else [partial(_by_vectors, encoder), _by_words]
    near = [_near(corpus, search) for search in searches]
    for at, index in enumerate(chosen):
        found = corpus.negatives(at, [candidates[at] for candidates in near], count, seed)
        given[index] = replace(sources[index], pair=replace(sources[index].pair, negatives=tuple(found)))
    return given


@dataclass(frozen=True, slots=True)
class _Corpus:
    """The documents that negatives are chosen from: all positives, each once.

    own: the document of each pair. groups: the near-duplicate groups of each document, by its text and by its code
    without docstring. right: the groups of all texts that belong to each pair's anchor, or to a near duplicate of it.
    names: the words of each document's name. by_language: the documents of each language.
    """

    sources: Sequence[PairSource]
    documents: list[str]
    own: list[int]
    groups: list[frozenset[int]]
    right: list[set[int]]
    names: list[list[str]]
    by_language: dict[str, list[int]]

    @classmethod
    def of(cls, sources: Sequence[PairSource]) -> "_Corpus":
        first: dict[str, PairSource] = {}
        for source in sources:
            first.setdefault(source.pair.positive, source)
        numbers = {text: number for number, text in enumerate(first)}
        own = [numbers[source.pair.positive] for source in sources]
        texts = dict.fromkeys(text for source in sources for text in source.texts)
        group = dict(zip(texts, duplicate_groups(list(texts)), strict=True))
        groups = [
            frozenset(group[text] for text in (document, *source.bodies[:1])) for document, source in first.items()
        ]
        by_anchor: dict[int, set[int]] = defaultdict(set)
        for source in sources:
            by_anchor[group[source.pair.anchor]].update(group[text] for text in source.texts)
        right = [by_anchor[group[source.pair.anchor]] for source in sources]
        by_language: dict[str, list[int]] = defaultdict(list)
        for number, source in enumerate(first.values()):
            by_language[source.pair.language].append(number)
        names = [words(source.name) for source in first.values()]
        return cls(sources, list(first), own, groups, right, names, by_language)

    def negatives(self, at: int, near: Sequence[Sequence[int]], count: int, seed: int) -> list[str]:
        """The negatives of a pair: from the results of each search in turn, then random ones of its language."""
        pair = self.sources[at].pair
        rng, alike = random.Random(f"{seed} {pair.anchor} {pair.positive}"), self.by_language[pair.language]
        spare = rng.sample(alike, min(NEIGHBOURS, len(alike)))
        found: list[int] = []
        taken: set[int] = set()
        for candidate in (*_in_turn(near), *spare):
            if len(found) < count and self._is_wrong(at, candidate) and taken.isdisjoint(self.groups[candidate]):
                found.append(candidate)
                taken |= self.groups[candidate]
        return [self.documents[candidate] for candidate in found]

    def _is_wrong(self, at: int, candidate: int) -> bool:
        """Whether a document does not belong to the anchor, by near duplicates and by name.

        The symbol that contains the anchor belongs to it.
        """
        source, name = self.sources[at], self.names[candidate]
        is_same = bool(name) and name in (words(source.name), words(source.anchor_name))
        return not is_same and self.right[at].isdisjoint(self.groups[candidate])


def _in_turn(near: Sequence[Sequence[int]]) -> list[int]:
    return [found[place] for place in range(NEIGHBOURS) for found in near if place < len(found)]


def _near(corpus: _Corpus, search: Search) -> list[list[int]]:
    """The documents near each pair's anchor, nearest first."""
    found = []
    for start in range(0, len(corpus.sources), BLOCK):
        sources, own = corpus.sources[start : start + BLOCK], corpus.own[start : start + BLOCK]
        shown = sorted(set(own))
        place = {document: at for at, document in enumerate(shown)}
        rows = search([corpus.documents[each] for each in shown], [source.pair.anchor for source in sources])
        for scores, document in zip(rows, own, strict=True):
            found.append([shown[at] for at in _nearest(scores, float(scores[place[document]]))])
    return found


def _by_words(documents: Sequence[str], anchors: Sequence[str]) -> Iterator[Scores]:
    """BM25 over the words of identifiers and prose."""
    index = bm25s.BM25()
    index.index([words(text) or [""] for text in documents], show_progress=False)
    for anchor in anchors:
        known = [word for word in dict.fromkeys(words(anchor)) if word in index.vocab_dict]
        yield index.get_scores(known) if known else np.zeros(len(documents), np.float32)


def _by_vectors(encoder: Encoder, documents: Sequence[str], anchors: Sequence[str]) -> Iterator[Scores]:
    """Cosine of the model's vectors before the training."""
    rows, queries = (
        unit_vectors(encoder, [text[:EMBEDDED_CHARS] for text in texts], prompts)
        for texts, prompts in ((documents, DOCUMENT_PROMPTS), (anchors, ANCHOR_PROMPTS))
    )
    return (rows @ query for query in queries)


def _nearest(scores: Scores, own: float) -> list[int]:
    """The documents with the highest scores below the margin to the positive's; at equal scores the first."""
    allowed = np.where(scores < MARGIN * own, scores, 0)
    few = min(NEIGHBOURS, len(allowed))
    some = np.flatnonzero((allowed > 0) & (allowed >= np.partition(allowed, -few)[-few]))
    nearest: list[int] = some[np.argsort(-allowed[some], kind="stable")][:few].tolist()
    return nearest
