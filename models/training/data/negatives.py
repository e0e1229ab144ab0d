"""Hard negatives: for each pair texts that look right and are not.

Owns where they are looked for (words by BM25, meaning by the vectors of the model that is trained) and which are too
near to be called wrong. Knows no file.
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

from ...encoders.base import Encoder, finish
from ..verify.encoding import options_named, pool_texts
from .near_duplicates import clone_groups
from .pairs import PairSource, words

NEIGHBOURS = 16
"""Candidates of each kind that are looked at."""
MARGIN = 0.95
"""A candidate that is more like the anchor than so much of what the positive is may well be right too."""
SEARCHED = 8192
"""Pairs whose documents are searched at once, so that the time is linear in all of them."""
EMBEDDED_CHARS = 1024
"""Of a text, for its vector: about what a training reads of it."""

Scores: TypeAlias = npt.NDArray[np.float32]
Search: TypeAlias = Callable[[Sequence[str], Sequence[str]], Iterator[Scores]]
"""documents (D), anchors -> for each anchor the scores (D,) of the documents."""


def with_negatives(
    links: Sequence[PairSource], count: int, seed: int, encoder: Encoder | None = None
) -> list[PairSource]:
    """The links, each of the training part with up to `count` negatives of that part; a random one where none is near.

    encoder: the model that is trained; None: words alone decide. Links that have negatives keep them. Raises
    OutOfDeviceMemory.
    """
    chosen = [index for index, link in enumerate(links) if link.pair.split == "train" and not link.pair.negatives]
    given = list(links)
    if not count or not chosen:
        return given
    corpus = _Corpus.of([links[index] for index in chosen])
    searches: list[Search] = [_by_words] if encoder is None else [partial(_by_meaning, encoder), _by_words]
    near = [_near(corpus, search) for search in searches]
    for at, index in enumerate(chosen):
        found = corpus.negatives(at, [candidates[at] for candidates in near], count, seed)
        given[index] = replace(links[index], pair=replace(links[index].pair, negatives=tuple(found)))
    return given


@dataclass(frozen=True, slots=True)
class _Corpus:
    """The documents that negatives are taken from: all positives, each once.

    own: for each link its document. kin: of each document the groups of clones that it is in, by its text and by its
    code without documentation. right: for each link the groups of all that belongs to its anchor, or to a clone of it.
    names: of each document the words. by_language: the documents of each.
    """

    links: Sequence[PairSource]
    documents: list[str]
    own: list[int]
    kin: list[frozenset[int]]
    right: list[set[int]]
    names: list[list[str]]
    by_language: dict[str, list[int]]

    @classmethod
    def of(cls, links: Sequence[PairSource]) -> "_Corpus":
        first: dict[str, PairSource] = {}
        for link in links:
            first.setdefault(link.pair.positive, link)
        numbers = {text: number for number, text in enumerate(first)}
        own = [numbers[link.pair.positive] for link in links]
        texts = dict.fromkeys(text for link in links for text in link.texts)
        groups = dict(zip(texts, clone_groups(list(texts)), strict=True))
        kin = [frozenset(groups[text] for text in (document, *link.bodies[:1])) for document, link in first.items()]
        by_anchor: dict[int, set[int]] = defaultdict(set)
        for link in links:
            by_anchor[groups[link.pair.anchor]].update(groups[text] for text in link.texts)
        right = [by_anchor[groups[link.pair.anchor]] for link in links]
        by_language: dict[str, list[int]] = defaultdict(list)
        for number, link in enumerate(first.values()):
            by_language[link.pair.language].append(number)
        names = [words(link.name) for link in first.values()]
        return cls(links, list(first), own, kin, right, names, by_language)

    def negatives(self, at: int, near: Sequence[Sequence[int]], count: int, seed: int) -> list[str]:
        """Of a link: from each kind of neighbours in turn, else at random from its language."""
        pair = self.links[at].pair
        rng, alike = random.Random(f"{seed} {pair.anchor} {pair.positive}"), self.by_language[pair.language]
        spare = rng.sample(alike, min(NEIGHBOURS, len(alike)))
        found: list[int] = []
        taken: set[int] = set()
        for candidate in (*_in_turn(near), *spare):
            if len(found) < count and self._is_wrong(at, candidate) and taken.isdisjoint(self.kin[candidate]):
                found.append(candidate)
                taken |= self.kin[candidate]
        return [self.documents[candidate] for candidate in found]

    def _is_wrong(self, at: int, candidate: int) -> bool:
        """Whether a document belongs neither to the anchor nor to one like it, by text, by clone or by name.

        Nor is the symbol wrong in which the anchor stands.
        """
        link, name = self.links[at], self.names[candidate]
        is_same = bool(name) and name in (words(link.name), words(link.anchor_name))
        return not is_same and self.right[at].isdisjoint(self.kin[candidate])


def _in_turn(near: Sequence[Sequence[int]]) -> list[int]:
    return [found[place] for place in range(NEIGHBOURS) for found in near if place < len(found)]


def _near(corpus: _Corpus, search: Search) -> list[list[int]]:
    """For each link the documents that are near its anchor, nearest first."""
    found = []
    for start in range(0, len(corpus.links), SEARCHED):
        links, own = corpus.links[start : start + SEARCHED], corpus.own[start : start + SEARCHED]
        shown = sorted(set(own))
        place = {document: at for at, document in enumerate(shown)}
        rows = search([corpus.documents[each] for each in shown], [link.pair.anchor for link in links])
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


def _by_meaning(encoder: Encoder, documents: Sequence[str], anchors: Sequence[str]) -> Iterator[Scores]:
    """Cosine of the vectors that the model gives before the training."""
    from ..fit.texts import ANCHOR_PROMPTS, DOCUMENT_PROMPTS  # with torch, which words alone need not wait for

    rows, queries = (
        finish(pool_texts(encoder, [text[:EMBEDDED_CHARS] for text in texts], options_named(encoder, prompts)), True)
        for texts, prompts in ((documents, DOCUMENT_PROMPTS), (anchors, ANCHOR_PROMPTS))
    )
    return (rows @ query for query in queries)


def _nearest(scores: Scores, own: float) -> list[int]:
    """The documents with the highest scores that keep the margin to the positive's; of equal ones the first."""
    allowed = np.where(scores < MARGIN * own, scores, 0)
    few = min(NEIGHBOURS, len(allowed))
    some = np.flatnonzero((allowed > 0) & (allowed >= np.partition(allowed, -few)[-few]))
    nearest: list[int] = some[np.argsort(-allowed[some], kind="stable")][:few].tolist()
    return nearest
