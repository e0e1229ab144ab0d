"""The held-out pairs as a retrieval task: each anchor must find its positives among all documents."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .records import Pair
from .split import position

MAX_DISTRACTORS = 2000
SELECTION_SHARE, MAX_SELECTION_SHARE = 1 / 3, 1 / 2
"""Of the held-out pairs, for the selection of the best epoch."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """queries (N), documents (M): distinct texts; the first `positives` documents are those of held-out pairs, the
    others are distractors from the training pairs. relevant: the documents that each query should find; ignored: those
    that do not count, its own text and its positives in training. files: of each query's first relevant document."""

    queries: list[str]
    documents: list[str]
    positives: int
    relevant: list[set[int]]
    ignored: list[set[int]]
    files: list[str]


def held_out(pairs: Iterable[Pair], max_distractors: int = MAX_DISTRACTORS) -> HeldOut:
    """The task of the held-out pairs, with training pairs as distractors; deterministic."""
    held: dict[str, list[Pair]] = {}
    trained: dict[str, set[str]] = {}
    for pair in pairs:
        if pair.split == "held_out":
            held.setdefault(pair.anchor, []).append(pair)
        else:
            trained.setdefault(pair.positive, set()).add(pair.anchor)
    positives = dict.fromkeys(pair.positive for found in held.values() for pair in found)
    distractors = _sampled([text for text in trained if text not in positives], max_distractors)
    number = {text: index for index, text in enumerate([*positives, *distractors])}
    in_training: dict[str, set[int]] = {}
    for text in number:
        for anchor in trained.get(text, ()):
            in_training.setdefault(anchor, set()).add(number[text])
    relevant = [{number[pair.positive] for pair in found} for found in held.values()]
    own = [{number[anchor]} if anchor in number else set() for anchor in held]
    ignored = [(own[i] | in_training.get(anchor, set())) - relevant[i] for i, anchor in enumerate(held)]
    files = [found[0].file for found in held.values()]
    return HeldOut(list(held), list(number), len(positives), relevant, ignored, files)


def split_held_out(pairs: Sequence[Pair], epochs: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """All training pairs, once with the held-out pairs that select the best epoch, once with those for verification.

    The two sets share no file, or no anchor if there is one file: the selected epoch is biased towards the former. With
    one epoch there is no selection, and all held-out pairs are in both. If too few would be left for verification, none
    are used for selection.
    """
    if epochs == 1:
        return list(pairs), list(pairs)
    held = [pair for pair in pairs if pair.split == "held_out"]
    by_file = len({pair.file for pair in held}) > 1
    sizes = Counter(pair.file if by_file else pair.anchor for pair in held)
    selection, count = set[str](), 0
    for key in sorted(sizes, key=lambda key: (position(key, seed), key)):
        if count < SELECTION_SHARE * len(held) and count + sizes[key] <= MAX_SELECTION_SHARE * len(held):
            selection.add(key)
            count += sizes[key]

    def part(selects: bool) -> list[Pair]:
        marked = ((pair, (pair.file if by_file else pair.anchor) in selection) for pair in pairs)
        return [pair for pair, in_selection in marked if pair.split == "train" or in_selection == selects]

    return part(True), part(False)


def _sampled(texts: list[str], count: int) -> list[str]:
    """At most `count` of the texts, evenly spaced."""
    if len(texts) <= count:
        return texts
    return [texts[index * len(texts) // count] for index in range(count)]
