"""The acceptance criteria: each check yields the reasons for which a candidate is rejected."""

from collections.abc import Iterator

import numpy as np

from ...encoders.base import Encoder, Vectors
from ..run import VerifyLimits
from .drift import Drift
from .report import Comparison

MAX_LOSS = 0.02
"""Of NDCG@10 or MRR@10, however uncertain: of few queries nothing is certain."""
UNIT_TOLERANCE = 1e-3


def check_shape(live: Encoder, candidate: Encoder) -> Iterator[str]:
    """Whether the candidate can replace the live version: dimensions and size of the weights."""
    if candidate.dimensions != live.dimensions:
        yield f"its vectors have {candidate.dimensions} dimensions, those of the live version {live.dimensions}"
    if candidate.weight_bytes != live.weight_bytes:
        yield (
            f"its weights take {candidate.weight_bytes:,} bytes in {candidate.dtype}, those of the live version "
            f"{live.weight_bytes:,} bytes in {live.dtype}"
        )


def check_finite(vectors: Vectors) -> Iterator[str]:
    """vectors (N, D): as the model computes them, before `finish`."""
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        yield f"{int((~finite).sum())} of {len(vectors)} texts got a vector with a value that is no finite number"


def check_unit_norm(vectors: Vectors) -> Iterator[str]:
    """vectors (N, D): normalised ones."""
    norms = np.linalg.norm(vectors, axis=1)
    off = ~(np.abs(norms - 1) <= UNIT_TOLERANCE)
    if off.any():
        worst = float(norms[np.abs(norms - 1).argmax()])
        yield f"{int(off.sum())} of {len(vectors)} vectors have not unit norm, one has {worst:.3f}"


def check_speed(ratio: float, limits: VerifyLimits) -> Iterator[str]:
    """ratio: time of a batch, candidate to live."""
    if not ratio <= limits.max_slowdown:
        yield f"a batch takes {ratio:.2f} times as long as with the live version, at most {limits.max_slowdown} allowed"


def check_not_worse(name: str, compared: Comparison, limits: VerifyLimits) -> Iterator[str]:
    """name: of the metric and the data."""
    fell = f"{name} fell from {compared.before:.3f} to {compared.after:.3f}"
    if compared.difference < -MAX_LOSS:
        yield f"{fell}; {MAX_LOSS} is allowed"
    elif compared.p_worse >= limits.confidence:
        yield (
            f"{fell}, which is worse with a certainty of {100 * compared.p_worse:.3g} %; it must stay below "
            f"{100 * limits.confidence:.3g} %"
        )


def check_gain(ndcg: Comparison, queries: int, limits: VerifyLimits) -> Iterator[str]:
    """Whether the gain may be chance: each new version makes stored vectors outdated, which has to pay."""
    if limits.require_gain and not ndcg.low > 0:
        yield f"no gain: {_interval(ndcg, queries)}; it must lie above 0 (finetune.limits.require_gain)"


def check_probe(before: float, after: float, limits: VerifyLimits) -> Iterator[str]:
    """before, after: scores of the probe of everyday English."""
    if not before - after <= limits.probe_drop + 1e-9:
        yield f"MRR on everyday English fell by {before - after:.3f} from {before:.3f}; {limits.probe_drop} is allowed"


def check_drift(drift: Drift, limits: VerifyLimits) -> Iterator[str]:
    """Whether vectors moved further than the limits allow."""
    if not drift.cosine_p5 >= limits.min_cosine_p5:
        yield (
            f"of its vectors 5 % have a cosine below {drift.cosine_p5:.3f} to the live version's of the same text, at "
            f"least {limits.min_cosine_p5} required"
        )
    if not drift.overlap >= limits.min_overlap:
        yield (
            f"of the ten nearest texts {drift.overlap:.1%} are the same as with the live version, at least "
            f"{limits.min_overlap:.0%} required"
        )


def summary(ndcg: Comparison, queries: int) -> str:
    """The verdict on an accepted candidate: better, or only not worse."""
    interval = _interval(ndcg, queries)
    if ndcg.low > 0:
        return f"better on held-out pairs than the live version ({interval})"
    return f"neither certainly better nor certainly worse on held-out pairs than the live version ({interval})"


def _interval(ndcg: Comparison, queries: int) -> str:
    return f"NDCG@10 {ndcg.difference:+.3f}, 95 % interval {ndcg.low:+.3f} to {ndcg.high:+.3f}, {queries} queries"
