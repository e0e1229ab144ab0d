"""How well an embedding model finds functions by what they do, under each mask and end token that it allows.

Owns the queries and functions, and which settings of an entry are tried.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import product

import numpy as np
from pydantic import TypeAdapter

from ..catalogue import ModelSpec
from ..encoders.base import Encoder, TextOptions, Tokens, Vectors, finish
from ..errors import ModelUnavailable, SelfTestFailed
from ..training.fit.texts import ANCHOR_PROMPTS, DOCUMENT_PROMPTS
from ..training.verify.metrics import Bootstrap, Ranking, paired_bootstrap, rank_metrics

SAME = 1e-3
"""Unit vectors that differ by less come of the same tokens and the same mask."""
ROWS = 8
Load = Callable[[ModelSpec], Encoder]


@dataclass(frozen=True, slots=True)
class Item:
    """query: what a function does, in words."""

    query: str
    function: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A mask and an end token that were tried. causal: None where the model has no such choice, or it is not known.

    own: as the entry says. problem: why it is not possible, as a clause; else `ranking` tells how each query found its
    function, and `gain` by how much that is better than with the entry's own setting (NDCG@10).
    """

    causal: bool | None
    append_eos: bool
    own: bool
    ranking: Ranking | None = None
    gain: Bootstrap | None = None
    problem: str | None = None

    @property
    def ndcg(self) -> float:
        """NDCG@10; below any other where it is not possible."""
        return self.ranking.mean_ndcg if self.ranking else -1.0

    @property
    def first(self) -> float:
        """The share of queries that find their function before all others."""
        return float((self.ranking.ranks == 1).mean()) if self.ranking else 0.0


@cache
def items() -> tuple[Item, ...]:
    """The queries and functions, always in the same order."""
    stored = resources.files(__package__).joinpath("pairs.json").read_bytes()
    return TypeAdapter(tuple[Item, ...]).validate_json(stored)


def tried(spec: ModelSpec, load: Load) -> list[Setting]:
    """Every setting that makes a difference, the entry's own first, and those that are not possible.

    load: an encoder of an entry, which is closed afterwards. Raises what it does for the entry's own setting.
    """
    vectors = [_vectors(load(spec))]
    own = rank(*vectors[0])
    found = [Setting(spec.causal, bool(spec.append_eos), True, own)]
    for variant in _others(spec):
        setting = Setting(variant.causal, bool(variant.append_eos), False)
        try:
            made = _vectors(load(variant))
        except (ModelUnavailable, SelfTestFailed) as error:
            reason = error.reason if isinstance(error, ModelUnavailable) else str(error)
            found.append(replace(setting, problem=reason.partition(";")[0]))
            continue
        if any(_same(made, known) for known in vectors):
            if found[0].causal is None and _same(made, vectors[0]):
                found[0] = replace(found[0], causal=variant.causal)
            continue
        vectors.append(made)
        ranking = rank(*made)
        found.append(replace(setting, ranking=ranking, gain=paired_bootstrap(ranking.ndcg, own.ndcg, seed=0)))
    return found


def best(found: Sequence[Setting]) -> Setting:
    """The one that ranks best; of equal ones the entry's own."""
    return max(found, key=lambda setting: (setting.ndcg, setting.own))


def rank(queries: Vectors, functions: Vectors) -> Ranking:
    """How unit vectors (N, D) of the queries find those of the functions, in the same order."""
    return rank_metrics(queries, functions, [{index} for index in range(len(queries))])


def _others(spec: ModelSpec) -> Iterator[ModelSpec]:
    if spec.served_by == "onnx":
        return
    for causal, append_eos in product((False, True), (False, True)):
        if (causal, append_eos) != (spec.causal, bool(spec.append_eos)):
            yield spec.model_copy(update={"causal": causal, "append_eos": append_eos or None})


def _same(one: tuple[Vectors, Vectors], other: tuple[Vectors, Vectors]) -> bool:
    return all(float(np.abs(a - b).max()) < SAME for a, b in zip(one, other, strict=True))


def _vectors(encoder: Encoder) -> tuple[Vectors, Vectors]:
    """Unit vectors (N, D) of the queries and of the functions, each behind the model's own prompt for it, if any."""
    try:
        queries = _embedded(encoder, [item.query for item in items()], ANCHOR_PROMPTS)
        return queries, _embedded(encoder, [item.function for item in items()], DOCUMENT_PROMPTS)
    finally:
        encoder.close()


def _embedded(encoder: Encoder, texts: Sequence[str], names: Sequence[str]) -> Vectors:
    prompt = next((name for name in names if name in encoder.prompts), None)
    task = next((name for name in names if name in encoder.tasks), None)
    made = encoder.tokenize(texts, TextOptions(prompt_name=prompt, task=task))
    tokens = [item for item in made if isinstance(item, Tokens)]
    batches = [tokens[start : start + ROWS] for start in range(0, len(tokens), ROWS)]
    return finish(np.concatenate([encoder.encode(batch) for batch in batches]), True)
