"""A candidate beside the live version: what it finds, what it kept, how far it moved.

Owns the order of the measurements. What is measured is metrics.py's, probe.py's and drift.py's, what a candidate is
rejected for acceptance.py's. Knows no file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ...encoders.base import Encoder, Vectors, finish
from ..fit.texts import ANCHOR_PROMPTS, DOCUMENT_PROMPTS
from ..options import VerifyLimits
from . import acceptance
from .canary import live_round_texts
from .drift import Drift, ReindexCost, drift, fit_map, reindex_cost
from .encoding import encode_texts, options_named, pool_texts, speed_ratio
from .english import probe_score
from .held_out import HeldOut
from .metrics import Bootstrap, Ranking, paired_bootstrap, rank_metrics
from .report import Comparison, Example

EXAMPLES = 5


@dataclass(slots=True)
class Findings:
    """What is known of a candidate so far. reasons: why it is rejected; praise: what to say of it otherwise.

    live_round (32, D): its finished vectors of live_round_texts; map (D, D): see drift.fit_map.
    """

    reasons: list[str] = field(default_factory=list)
    praise: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    retrieval: dict[str, Comparison] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    drift: Drift | None = None
    reindex: ReindexCost | None = None
    live_round: Vectors | None = None
    map: Vectors | None = None


@dataclass(frozen=True, slots=True)
class Comparing:
    """Two versions of a model, the task that both are set, and what the candidate must keep to."""

    live: Encoder
    candidate: Encoder
    held: HeldOut
    limits: VerifyLimits
    seed: int
    probe_base: float | None = None
    """The probe's score of the weights that the entry names; None: the live version is these, or does not tell."""
    operators: HeldOut | None = None
    """A task that the operator sets besides."""

    def into(self, found: Findings) -> None:
        """Measure everything; a candidate that is too strange for a measure is spared the rest.

        Raises OutOfDeviceMemory.
        """
        found.reasons += acceptance.unlike(self.live, self.candidate)
        if self.live.dimensions != self.candidate.dimensions:
            return
        texts = live_round_texts()
        found.live_round = self._encoded(texts, found)
        if found.live_round is None:
            return
        found.metrics["speed_ratio"] = speed_ratio(self.live, self.candidate, texts)
        found.reasons += acceptance.slow(found.metrics["speed_ratio"], self.limits)
        self._probe(found)
        self._search(found)
        if self.operators is not None:
            self._search_operators(self.operators, found)

    def _probe(self, found: Findings) -> None:
        before, after = (probe_score(partial(encode_texts, encoder)) for encoder in (self.live, self.candidate))
        base = before if self.probe_base is None else self.probe_base
        found.metrics |= {"probe_base": base, "probe_before": before, "probe_after": after}
        found.reasons += acceptance.forgetful(base, after, self.limits)

    def _search(self, found: Findings) -> None:
        """Retrieval on the held-out pairs, drift on their texts, and what a re-index costs."""
        if not self.held.queries:
            found.reasons.append("there are no held-out pairs, so nothing shows that it is not worse than the live one")
            return
        new = self._candidates_task(self.held, found)
        if new is None:
            return
        old = self._live_task(self.held)
        self._rank(old, new, found)
        found.drift = drift(old.held_out, new.held_out)
        found.reasons += acceptance.drifted(found.drift, self.limits)
        found.reindex = reindex_cost(old.documents, new.documents, new.queries, self.held.relevant, self.held.ignored)
        found.map = fit_map(old.documents, new.documents)
        found.metrics |= {
            "cosine_p5": found.drift.cosine_p5,
            "cosine_p50": found.drift.cosine_p50,
            "overlap@10": found.drift.overlap,
            "old_vectors_overlap@10": found.reindex.old.overlap,
            "mapped_vectors_overlap@10": found.reindex.mapped.overlap,
        }

    def _rank(self, old: "_Task", new: "_Task", found: Findings) -> None:
        before, after = old.ranking(self.held), new.ranking(self.held)
        found.retrieval = self._compared(before, after)
        for name, compared in found.retrieval.items():
            found.metrics |= {f"{name}_before": compared.before, f"{name}_after": compared.after}
            found.reasons += acceptance.worse(f"{name.upper()} on held-out pairs", compared, self.limits)
        ndcg = found.retrieval["ndcg@10"]
        found.metrics["p_worse"] = max(compared.p_worse for compared in found.retrieval.values())
        found.reasons += acceptance.gainless(ndcg, len(self.held.queries), self.limits)
        found.praise = acceptance.praise(ndcg, len(self.held.queries))
        found.examples = examples(self.held, before, after)

    def _search_operators(self, operators: HeldOut, found: Findings) -> None:
        """Retrieval on the operator's own pairs, of which it need not find more, since it learned nothing of them."""
        new = self._candidates_task(operators, found)
        if new is None:
            return
        old = self._live_task(operators)
        for name, compared in self._compared(old.ranking(operators), new.ranking(operators)).items():
            found.metrics |= {f"judge_{name}_before": compared.before, f"judge_{name}_after": compared.after}
            found.reasons += acceptance.worse(f"{name.upper()} on the operator's own pairs", compared, self.limits)

    def _compared(self, before: Ranking, after: Ranking) -> dict[str, Comparison]:
        ndcg = paired_bootstrap(after.ndcg, before.ndcg, self.seed)
        mrr = paired_bootstrap(after.reciprocal_rank, before.reciprocal_rank, self.seed)
        return {
            "ndcg@10": _comparison(before.mean_ndcg, after.mean_ndcg, ndcg),
            "mrr@10": _comparison(before.mean_reciprocal_rank, after.mean_reciprocal_rank, mrr),
        }

    def _encoded(self, texts: list[str], found: Findings, prompts: Sequence[str] = ()) -> Vectors | None:
        """The candidate's finished vectors; None where they are no vectors as they should be."""
        vectors = pool_texts(self.candidate, texts, options_named(self.candidate, prompts))
        finished = finish(vectors, self.candidate.normalizes)
        strange = [*acceptance.infinite(vectors), *(acceptance.unscaled(finished) if self.candidate.normalizes else ())]
        found.reasons += strange[:1]
        return None if strange else finished

    def _live_task(self, held: HeldOut) -> "_Task":
        queries, documents = (
            encode_texts(self.live, texts, options_named(self.live, prompts))
            for texts, prompts in ((held.queries, ANCHOR_PROMPTS), (held.documents, DOCUMENT_PROMPTS))
        )
        return _Task.of(queries, documents, held)

    def _candidates_task(self, held: HeldOut, found: Findings) -> "_Task | None":
        """None where its vectors are none as they should be."""
        queries = self._encoded(held.queries, found, ANCHOR_PROMPTS)
        documents = self._encoded(held.documents, found, DOCUMENT_PROMPTS)
        return None if queries is None or documents is None else _Task.of(queries, documents, held)


@dataclass(frozen=True, slots=True)
class _Task:
    """Unit vectors of the held-out task: queries (N, D), documents (M, D), held_out (N + P, D) without distractors."""

    queries: Vectors
    documents: Vectors
    held_out: Vectors

    @classmethod
    def of(cls, queries: Vectors, documents: Vectors, held: HeldOut) -> "_Task":
        asked, stored = finish(queries, True), finish(documents, True)
        return cls(asked, stored, np.concatenate([asked, stored[: held.positives]]))

    def ranking(self, held: HeldOut) -> Ranking:
        return rank_metrics(self.queries, self.documents, held.relevant, held.ignored)


def examples(held: HeldOut, before: Ranking, after: Ranking) -> list[Example]:
    """Those whose rank rose most, then those whose rank fell most; from 20 to 2 is as much as from 10 to 1."""
    ranks = list(zip(before.ranks.tolist(), after.ranks.tolist(), strict=True))
    by_gain = sorted(range(len(ranks)), key=lambda each: (-ranks[each][0] / ranks[each][1], each))
    rose = [each for each in by_gain[:EXAMPLES] if ranks[each][1] < ranks[each][0]]
    fell = [each for each in by_gain[::-1][:EXAMPLES] if ranks[each][1] > ranks[each][0]]
    return [
        Example(query=_first_line(held.queries[i]), file=held.files[i], before=ranks[i][0], after=ranks[i][1])
        for i in [*rose, *fell]
    ]


def _comparison(before: float, after: float, compared: Bootstrap) -> Comparison:
    difference, low, high = compared.difference, compared.low, compared.high
    return Comparison(before=before, after=after, difference=difference, low=low, high=high, p_worse=compared.p_worse)


def _first_line(text: str) -> str:
    return next(iter(text.strip().splitlines()), "")[:200]
