"""The held-out pairs as a task of retrieval: each anchor must find its positives among all.

Owns what counts as found. Knows no model.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from .records import Pair

MAX_DISTRACTORS = 2000


@dataclass(frozen=True, slots=True)
class HeldOut:
    """queries (N), documents (M): texts, each once; the first `positives` documents are those of held-out pairs, the
    others are from the training. relevant, ignored: for each query the documents that it should find, and those that
    do not count: its own text, and what training taught it. files: where the first relevant document stands."""

    queries: list[str]
    documents: list[str]
    positives: int
    relevant: list[set[int]]
    ignored: list[set[int]]
    files: list[str]


def held_out(pairs: Iterable[Pair], max_distractors: int = MAX_DISTRACTORS) -> HeldOut:
    """Make the task; the same pairs give the same one."""
    asked: dict[str, list[Pair]] = {}
    trained: dict[str, set[str]] = {}
    for pair in pairs:
        if pair.split == "held_out":
            asked.setdefault(pair.anchor, []).append(pair)
        else:
            trained.setdefault(pair.positive, set()).add(pair.anchor)
    positives = dict.fromkeys(pair.positive for found in asked.values() for pair in found)
    distractors = _spread([text for text in trained if text not in positives], max_distractors)
    number = {text: index for index, text in enumerate([*positives, *distractors])}
    taught: dict[str, set[int]] = {}
    for text in number:
        for anchor in trained.get(text, ()):
            taught.setdefault(anchor, set()).add(number[text])
    relevant = [{number[pair.positive] for pair in found} for found in asked.values()]
    own = [{number[anchor]} if anchor in number else set() for anchor in asked]
    ignored = [(own[i] | taught.get(anchor, set())) - relevant[i] for i, anchor in enumerate(asked)]
    files = [found[0].file for found in asked.values()]
    return HeldOut(list(asked), list(number), len(positives), relevant, ignored, files)


def _spread(texts: list[str], count: int) -> list[str]:
    """At most `count` of the texts, from all parts of the list."""
    if len(texts) <= count:
        return texts
    return [texts[index * len(texts) // count] for index in range(count)]
