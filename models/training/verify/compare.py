"""The comparison of a candidate with the live version: retrieval, general English, speed and drift."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np

from ...encoders.base import Encoder, Vectors, finish
from ..data.held_out import HeldOut
from ..encoding import ANCHOR_PROMPTS, DOCUMENT_PROMPTS, encode_texts, options_named, pool_texts, token_lists
from ..run import VerifyLimits
from . import acceptance
from .check_texts import canary_texts, probe_score
from .drift import Drift, ReindexCost, drift, fit_map, reindex_cost
from .metrics import Ranking, Values, paired_bootstrap, rank_metrics
from .report import Comparison, Example

EXAMPLES = 5


@dataclass(slots=True)
class Findings:
    """The measurements of a candidate so far. reasons: why it is rejected; summary: the verdict otherwise.

    canary (32, D): its finished vectors of canary_texts; map (D, D): see drift.fit_map.
    """

    reasons: list[str] = field(default_factory=list)
    summary: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    retrieval: dict[str, Comparison] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    drift: Drift | None = None
    reindex: ReindexCost | None = None
    canary: Vectors | None = None
    map: Vectors | None = None


@dataclass(frozen=True, slots=True)
class VersionComparison:
    """Two versions of a model, the retrieval task for both, and the limits for the candidate.

    probe_base: the probe's score of the entry's original weights; None: the live version is these, or has no record.
    judge: the operator's own task.
    """

    live: Encoder
    candidate: Encoder
    held: HeldOut
    limits: VerifyLimits
    seed: int
    probe_base: float | None = None
    judge: HeldOut | None = None

    def measure(self, found: Findings) -> None:
        """Add all measurements to `found`; stop at the first that shows the candidate's vectors to be unusable.

        Raises OutOfDeviceMemory.
        """
        found.reasons += acceptance.check_shape(self.live, self.candidate)
        if self.live.dimensions != self.candidate.dimensions:
            return
        texts = canary_texts()
        found.canary = self._encode_checked(texts, found)
        if found.canary is None:
            return
        found.metrics["speed_ratio"] = speed_ratio(self.live, self.candidate, texts)
        found.reasons += acceptance.check_speed(found.metrics["speed_ratio"], self.limits)
        self._probe(found)
        self._search(found)
        if self.judge is not None:
            self._search_judge(self.judge, found)

    def _probe(self, found: Findings) -> None:
        before, after = (probe_score(partial(encode_texts, encoder)) for encoder in (self.live, self.candidate))
        base = before if self.probe_base is None else self.probe_base
        found.metrics |= {"probe_base": base, "probe_before": before, "probe_after": after}
        found.reasons += acceptance.check_probe(base, after, self.limits)

    def _search(self, found: Findings) -> None:
        """Measure retrieval on the held-out pairs, drift on their texts, and the cost of a re-index."""
        if not self.held.queries:
            found.reasons.append("there are no held-out pairs, so nothing shows that it is not worse than the live one")
            return
        new = self._candidate_vectors(self.held, found)
        if new is None:
            return
        old = self._live_vectors(self.held)
        before, after = old.ranking(), new.ranking()
        found.retrieval = self._compare(before, after, found, "", "held-out pairs")
        found.metrics["p_worse"] = max(compared.p_worse for compared in found.retrieval.values())
        ndcg, queries = found.retrieval["ndcg@10"], len(self.held.queries)
        found.reasons += acceptance.check_gain(ndcg, queries, self.limits)
        found.summary = acceptance.summary(ndcg, queries)
        found.examples = examples(self.held, before, after)
        found.drift = drift(old.held_out, new.held_out)
        found.reasons += acceptance.check_drift(found.drift, self.limits)
        found.reindex = reindex_cost(old.documents, new.documents, new.queries, self.held.relevant, self.held.ignored)
        found.map = fit_map(old.documents, new.documents)
        found.metrics |= {
            "cosine_p5": found.drift.cosine_p5,
            "cosine_p50": found.drift.cosine_p50,
            "overlap@10": found.drift.overlap,
            "old_vectors_overlap@10": found.reindex.old.overlap,
            "mapped_vectors_overlap@10": found.reindex.mapped.overlap,
        }

    def _search_judge(self, judge: HeldOut, found: Findings) -> None:
        """Measure retrieval on the operator's pairs. No gain is required: the candidate did not train on them."""
        if new := self._candidate_vectors(judge, found):
            before, after = self._live_vectors(judge).ranking(), new.ranking()
            self._compare(before, after, found, "judge_", "the operator's own pairs")

    def _compare(
        self, before: Ranking, after: Ranking, found: Findings, prefix: str, data: str
    ) -> dict[str, Comparison]:
        """prefix: of the names of the metrics; data: what was ranked."""
        compared = {
            "ndcg@10": _comparison(before.ndcg, after.ndcg, self.seed),
            "mrr@10": _comparison(before.reciprocal_rank, after.reciprocal_rank, self.seed),
        }
        for name, one in compared.items():
            found.metrics |= {f"{prefix}{name}_before": one.before, f"{prefix}{name}_after": one.after}
            found.reasons += acceptance.check_not_worse(f"{name.upper()} on {data}", one, self.limits)
        return compared

    def _encode_checked(self, texts: list[str], found: Findings, prompts: Sequence[str] = ()) -> Vectors | None:
        """The candidate's finished vectors; None, with a reason in `found`, where they are not finite or not unit."""
        vectors = pool_texts(self.candidate, texts, options_named(self.candidate, prompts))
        finished = finish(vectors, self.candidate.normalizes)
        reasons = list(acceptance.check_finite(vectors))
        if self.candidate.normalizes:
            reasons += acceptance.check_unit_norm(finished)
        found.reasons += reasons[:1]
        return None if reasons else finished

    def _live_vectors(self, held: HeldOut) -> "_TaskVectors":
        queries, documents = (
            encode_texts(self.live, texts, options_named(self.live, prompts))
            for texts, prompts in ((held.queries, ANCHOR_PROMPTS), (held.documents, DOCUMENT_PROMPTS))
        )
        return _TaskVectors.of(held, queries, documents)

    def _candidate_vectors(self, held: HeldOut, found: Findings) -> "_TaskVectors | None":
        queries = self._encode_checked(held.queries, found, ANCHOR_PROMPTS)
        documents = self._encode_checked(held.documents, found, DOCUMENT_PROMPTS)
        return None if queries is None or documents is None else _TaskVectors.of(held, queries, documents)


@dataclass(frozen=True, slots=True)
class _TaskVectors:
    """Unit vectors of a retrieval task: queries (N, D), documents (M, D)."""

    held: HeldOut
    queries: Vectors
    documents: Vectors

    @classmethod
    def of(cls, held: HeldOut, queries: Vectors, documents: Vectors) -> "_TaskVectors":
        return cls(held, finish(queries, True), finish(documents, True))

    @property
    def held_out(self) -> Vectors:
        """(N + P, D): without the distractors."""
        return np.concatenate([self.queries, self.documents[: self.held.positives]])

    def ranking(self) -> Ranking:
        return rank_metrics(self.queries, self.documents, self.held.relevant, self.held.ignored)


def speed_ratio(live: Encoder, candidate: Encoder, texts: Sequence[str], repeats: int = 7) -> float:
    """Time of a batch of these texts, candidate to live: of each the fastest of several alternating runs.

    On the CPU it is the processor's time, which does not count while this process stands still for requests.
    """
    clock = time.process_time if live.device == "cpu" else time.perf_counter
    encoders = [(encoder, token_lists(encoder, texts)) for encoder in (live, candidate)]
    best_s = [float("inf")] * 2
    for _ in range(repeats):
        for which, (encoder, tokens) in enumerate(encoders):
            start = clock()
            encoder.encode(tokens)
            best_s[which] = min(best_s[which], clock() - start)
    return best_s[1] / best_s[0]


def examples(held: HeldOut, before: Ranking, after: Ranking) -> list[Example]:
    """The queries whose rank rose most, then those whose rank fell most, by ratio: 20 to 2 is as much as 10 to 1."""
    ranks = list(zip(before.ranks.tolist(), after.ranks.tolist(), strict=True))
    by_gain = sorted(range(len(ranks)), key=lambda each: (-ranks[each][0] / ranks[each][1], each))
    rose = [each for each in by_gain[:EXAMPLES] if ranks[each][1] < ranks[each][0]]
    fell = [each for each in by_gain[::-1][:EXAMPLES] if ranks[each][1] > ranks[each][0]]
    return [
        Example(next(iter(held.queries[i].strip().splitlines()), "")[:200], held.files[i], *ranks[i])
        for i in [*rose, *fell]
    ]


def _comparison(before: Values, after: Values, seed: int) -> Comparison:
    difference = asdict(paired_bootstrap(after, before, seed))
    return Comparison(before=float(before.mean()), after=float(after.mean()), **difference)
