"""The held-out pairs as a task of retrieval: each anchor must find its positives among all.

Owns what counts as found, and which of them choose the best epoch, which judge it. Knows no model.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..data.records import Pair
from ..data.split import position

MAX_DISTRACTORS = 2000
CHOOSING_SHARE, MOST_CHOOSING = 1 / 3, 1 / 2
"""Of the held-out pairs."""


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


def parted(pairs: Sequence[Pair], epochs: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """All training pairs, once with the held-out pairs that choose the best epoch, once with those that judge it.

    What an epoch was chosen by finds it good; so no file, and of one file alone no anchor, is in both. Of one epoch
    there is nothing to choose: all held-out pairs are in both. Where too little would be left to judge by, none choose.
    """
    if epochs == 1:
        return list(pairs), list(pairs)
    held = [pair for pair in pairs if pair.split == "held_out"]
    by_file = len({pair.file for pair in held}) > 1
    sizes = Counter(pair.file if by_file else pair.anchor for pair in held)
    choosing, count = set[str](), 0
    for key in sorted(sizes, key=lambda key: (position(key, seed), key)):
        if count < CHOOSING_SHARE * len(held) and count + sizes[key] <= MOST_CHOOSING * len(held):
            choosing.add(key)
            count += sizes[key]

    def part(chooses: bool) -> list[Pair]:
        told = ((pair, (pair.file if by_file else pair.anchor) in choosing) for pair in pairs)
        return [pair for pair, chosen in told if pair.split == "train" or chosen == chooses]

    return part(True), part(False)


def _spread(texts: list[str], count: int) -> list[str]:
    """At most `count` of the texts, from all parts of the list."""
    if len(texts) <= count:
        return texts
    return [texts[index * len(texts) // count] for index in range(count)]
