"""Code search with an embedding model, with each attention mask and end token that it supports."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import product

import numpy as np
from pydantic import TypeAdapter

from ..catalogue import ModelSpec
from ..encoders.base import Encoder, Vectors
from ..errors import ModelUnavailable, SelfTestFailed
from ..training.encoding import ANCHOR_PROMPTS, DOCUMENT_PROMPTS, unit_vectors
from ..training.verify.metrics import Bootstrap, Ranking, paired_bootstrap, rank_metrics

SAME = 1e-3
"""Unit vectors with smaller differences come from the same tokens and mask."""
Load = Callable[[ModelSpec], Encoder]


@dataclass(frozen=True, slots=True)
class Item:
    """A function, and a query that describes it."""

    query: str
    function: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A mask and an end token that were tried. causal: None if the model has one mask only, or it is not known.

    own: whether it is the entry's. problem: why it is not possible, as a clause. ranking: of each query's function.
    gain: in NDCG@10 over the entry's own setting.
    """

    causal: bool | None
    append_eos: bool
    own: bool
    ranking: Ranking | None = None
    gain: Bootstrap | None = None
    problem: str | None = None

    @property
    def ndcg(self) -> float:
        """NDCG@10; -1 if the setting is not possible."""
        return self.ranking.mean_ndcg if self.ranking else -1.0

    @property
    def first(self) -> float:
        """Share of queries that rank their function first."""
        return float((self.ranking.ranks == 1).mean()) if self.ranking else 0.0


@cache
def items() -> tuple[Item, ...]:
    """The queries and functions, in a fixed order."""
    stored = resources.files(__package__).joinpath("pairs.json").read_bytes()
    return TypeAdapter(tuple[Item, ...]).validate_json(stored)


def evaluate(spec: ModelSpec, load: Load) -> list[Setting]:
    """All settings with different vectors, the entry's own first, and the ones that are not possible.

    load: entry -> encoder, which is closed afterwards. Raises what `load` raises for the entry's own setting.
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
    """The setting that ranks best; among equals, the entry's own."""
    return max(found, key=lambda setting: (setting.ndcg, setting.own))


def rank(queries: Vectors, functions: Vectors) -> Ranking:
    """Rank the functions for each query. queries, functions: unit vectors (N, D), in the same order."""
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
    """Unit vectors (N, D) of the queries and of the functions, with the model's own prompts for them, if any."""
    with closing(encoder):
        queries = unit_vectors(encoder, [item.query for item in items()], ANCHOR_PROMPTS)
        return queries, unit_vectors(encoder, [item.function for item in items()], DOCUMENT_PROMPTS)
