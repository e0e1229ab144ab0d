"""Batches of pairs: no text that is a false negative for another pair of its batch, and texts of similar length."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...encoders.base import Tokens
from ..data.records import Pair
from ..run import TrainingOptions
from .texts import TrainingTexts

POOL = 64
"""Batches in a pool. Pairs are drawn into pools at random, and sorted by length within one."""
OPEN = 16
"""Batches filled at the same time; a pair goes into the first one without a false negative."""


@dataclass(frozen=True, slots=True)
class Example:
    """A pair as the model reads it. columns: the tokens of its anchor, its positive and its negatives.

    own: the texts of its anchor and positive; foreign: those of its negatives; they decide which pairs share a batch.
    """

    columns: tuple[Tokens, ...]
    own: frozenset[str]
    foreign: frozenset[str]

    @property
    def cost(self) -> tuple[int, int, int]:
        """The sort key of batches: columns, then tokens."""
        return len(self.columns), max(map(len, self.columns[1:])), len(self.columns[0])


def examples(pairs: Sequence[Pair], texts: TrainingTexts, options: TrainingOptions) -> list[Example]:
    """One example a pair; with the triplet loss, one for each negative of each pair."""
    limit = options.hard_negatives
    chosen: list[tuple[Pair, tuple[str, ...]]]
    if options.loss == "triplet":
        chosen = [(pair, (negative,)) for pair in pairs for negative in pair.negatives[: max(1, limit)]]
    else:
        chosen = [(pair, pair.negatives[:limit]) for pair in pairs]
    anchors = texts.anchors([pair.anchor for pair, _ in chosen])
    documents = [texts.documents([pair.positive, *negatives]) for pair, negatives in chosen]
    return [
        Example((anchor, *others), frozenset((pair.anchor, pair.positive)), frozenset(negatives))
        for anchor, others, (pair, negatives) in zip(anchors, documents, chosen, strict=True)
    ]


@dataclass(slots=True)
class _Batch:
    """A batch that is being filled."""

    members: list[int] = field(default_factory=list)
    own: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)

    def accepts(self, example: Example) -> bool:
        """Whether the example's texts would be no false negatives here, nor get any. Negatives may be shared."""
        return (
            example.own.isdisjoint(self.own)
            and example.own.isdisjoint(self.foreign)
            and example.foreign.isdisjoint(self.own)
        )

    def add(self, index: int, example: Example) -> None:
        self.members.append(index)
        self.own |= example.own
        self.foreign |= example.foreign


class Batches:
    """A batch sampler: the batches of every epoch, as indices of examples, determined by the seed.

    All epochs have as many batches as the shortest one, for the learning-rate schedule; the smallest are dropped.
    So is a batch of one pair without a negative.
    """

    def __init__(self, items: Sequence[Example], batch_size: int, epochs: int, seed: int) -> None:
        made = [_epoch(items, batch_size, random.Random(f"{seed} {epoch}")) for epoch in range(epochs)]
        self._length = min(map(len, made))
        self._epochs = [_largest(batches, self._length) for batches in made]
        self._epoch = 0

    @property
    def of_all_epochs(self) -> list[list[int]]:
        return [members for epoch in self._epochs for members in epoch]

    def set_epoch(self, epoch: int) -> None:
        """Iterate over the batches of this epoch from now on; epochs count from 0."""
        self._epoch = min(epoch, len(self._epochs) - 1)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._epochs[self._epoch])

    def __len__(self) -> int:
        return self._length


def collate(texts: TrainingTexts) -> Callable[[Sequence[Example]], dict[str, Any]]:
    """A function that makes the tensors of a batch, named as sentence-transformers' trainer expects its columns.

    A batch has as many columns of negatives as its pair with the fewest.
    """

    def columns(batch: Sequence[Example]) -> dict[str, Any]:
        width = min(len(example.columns) for example in batch)
        names = ("anchor", "positive", *(f"negative{number}" for number in range(1, width - 1)))
        features = [texts.features([example.columns[place] for example in batch]) for place in range(width)]
        return {
            f"{name}_{key}": value
            for name, column in zip(names, features, strict=True)
            for key, value in column.items()
        }

    return columns


def _epoch(items: Sequence[Example], batch_size: int, rng: random.Random) -> list[list[int]]:
    order = list(range(len(items)))
    rng.shuffle(order)
    pool = POOL * batch_size
    full: list[list[int]] = []
    unfilled: list[_Batch] = []
    for start in range(0, len(order), pool):
        for index in sorted(order[start : start + pool], key=lambda each: items[each].cost):
            _place(index, items[index], batch_size, unfilled, full)
    full += [batch.members for batch in unfilled]
    batches = [members for members in full if len(members) > 1 or len(items[members[0]].columns) > 2]
    rng.shuffle(batches)
    return batches


def _place(index: int, example: Example, batch_size: int, unfilled: list[_Batch], full: list[list[int]]) -> None:
    batch = next((each for each in unfilled if each.accepts(example)), None)
    if batch is None:
        if len(unfilled) == OPEN:
            full.append(unfilled.pop(0).members)
        batch = _Batch()
        unfilled.append(batch)
    batch.add(index, example)
    if len(batch.members) == batch_size:
        unfilled.remove(batch)
        full.append(batch.members)


def _largest(batches: list[list[int]], count: int) -> list[list[int]]:
    kept = sorted(sorted(range(len(batches)), key=lambda each: -len(batches[each]))[:count])
    return [batches[index] for index in kept]
