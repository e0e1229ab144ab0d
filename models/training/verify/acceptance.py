"""What a candidate is rejected for: numbers and limits in, reasons in words out. Knows no model and no file."""

from collections.abc import Iterator

import numpy as np

from ...encoders.base import Encoder, Vectors
from ..options import VerifyLimits
from .drift import Drift
from .report import Comparison

MOST_LOST = 0.02
"""Of NDCG@10 or MRR@10, whatever the certainty."""
UNIT_TOLERANCE = 1e-3


def unlike(live: Encoder, candidate: Encoder) -> Iterator[str]:
    """Why it does not fit into the live version's place."""
    if candidate.dimensions != live.dimensions:
        yield f"its vectors have {candidate.dimensions} dimensions, those of the live version {live.dimensions}"
    if candidate.weight_bytes != live.weight_bytes:
        yield (
            f"its weights take {candidate.weight_bytes:,} bytes in {candidate.dtype}, those of the live version "
            f"{live.weight_bytes:,} bytes in {live.dtype}"
        )


def infinite(vectors: Vectors) -> Iterator[str]:
    """vectors (N, D): as the model gives them, before they are finished."""
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        yield f"{int((~finite).sum())} of {len(vectors)} texts got a vector with a value that is no finite number"


def unscaled(vectors: Vectors) -> Iterator[str]:
    """vectors (N, D): finished ones, of unit norm."""
    norms = np.linalg.norm(vectors, axis=1)
    off = ~(np.abs(norms - 1) <= UNIT_TOLERANCE)
    if off.any():
        worst = float(norms[np.abs(norms - 1).argmax()])
        yield f"{int(off.sum())} of {len(vectors)} vectors have not unit norm, one has {worst:.3f}"


def slow(ratio: float, limits: VerifyLimits) -> Iterator[str]:
    """ratio: time of a batch, candidate to live."""
    if not ratio <= limits.max_slowdown:
        yield f"a batch takes {ratio:.2f} times as long as with the live version, at most {limits.max_slowdown} allowed"


def worse(name: str, compared: Comparison, limits: VerifyLimits) -> Iterator[str]:
    """name: of the measure, and on what."""
    if compared.difference < -MOST_LOST:  # of few queries nothing is certain
        fell = f"{name} fell from {compared.before:.3f} to {compared.after:.3f}"
        yield f"{fell}; {MOST_LOST} is allowed"
    elif compared.p_worse >= limits.confidence:
        yield (
            f"{name} fell from {compared.before:.3f} to {compared.after:.3f}, which is worse with a "
            f"certainty of {100 * compared.p_worse:.3g} %; it must stay below {100 * limits.confidence:.3g} %"
        )


def gainless(ndcg: Comparison, queries: int, limits: VerifyLimits) -> Iterator[str]:
    """Whether its gain may be chance: each new version makes stored vectors old, which has to pay."""
    if limits.require_gain and not ndcg.low > 0:
        yield f"no gain: {_interval(ndcg, queries)}; it must lie above 0 (finetune.limits.require_gain)"


def forgetful(before: float, after: float, limits: VerifyLimits) -> Iterator[str]:
    """before, after: scores of the probe of everyday English."""
    if not before - after <= limits.probe_drop + 1e-9:
        yield f"MRR on everyday English fell by {before - after:.3f} from {before:.3f}; {limits.probe_drop} is allowed"


def drifted(found: Drift, limits: VerifyLimits) -> Iterator[str]:
    """Whether vectors moved further than a training should move them."""
    if not found.cosine_p5 >= limits.min_cosine_p5:
        yield (
            f"of its vectors 5 % have a cosine below {found.cosine_p5:.3f} to the live version's of the same text, at "
            f"least {limits.min_cosine_p5} required"
        )
    if not found.overlap >= limits.min_overlap:
        yield (
            f"of the ten nearest texts {found.overlap:.1%} are the same as with the live version, at least "
            f"{limits.min_overlap:.0%} required"
        )


def praise(ndcg: Comparison, queries: int) -> str:
    """What to say of an accepted candidate: whether it is really better, or only not worse."""
    interval = _interval(ndcg, queries)
    if ndcg.low > 0:
        return f"better on held-out pairs than the live version ({interval})"
    return f"neither certainly better nor certainly worse on held-out pairs than the live version ({interval})"


def _interval(ndcg: Comparison, queries: int) -> str:
    return f"NDCG@10 {ndcg.difference:+.3f}, 95 % interval {ndcg.low:+.3f} to {ndcg.high:+.3f}, {queries} queries"
