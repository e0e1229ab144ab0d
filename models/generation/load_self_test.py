"""Self-tests at load of a generation model: finite, causal, and quantised no other model than before.

Owns the probe text and the tolerances. There is no reference in float32: reading seven billion weights once more in
that would cost more than the load. That the engine's pass equals the model's own is what the oracle tests are for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..catalogue import Quantization
from ..errors import ModelUnavailable
from ..loading.device import memory_errors
from .errors import NonFiniteLogits

PROBE = (
    "def fibonacci(n: int) -> int:\n"
    '    """The n-th Fibonacci number."""\n'
    "    a, b = 0, 1\n"
    "    for _ in range(n):\n"
    "        a, b = b, a + b\n"
    "    return a\n"
)
PROBE_TOKENS = 64
MANY_TOKENS = 96
"""More than any kernel here takes for few rows."""
MOST_NATS: dict[Quantization, float] = {"int8": 0.3, "int4": 3.0}
"""How far, as Kullback-Leibler divergence a token, a quantised model may be from what it was: a guard against what
breaks it. What it costs is told in the notes, for the operator to judge."""


def probe_logits(model: str, network: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Scores (T, V) float32, on the CPU, of what follows each of the ids. Raises NonFiniteLogits."""
    device = network.device
    with torch.inference_mode(), memory_errors(str(device), model):
        logits: Tensor = network(input_ids=torch.tensor([list(ids)], device=device), use_cache=False).logits[0]
        scores = logits.float().cpu()
    if not bool(torch.isfinite(scores).all()):
        raise NonFiniteLogits(model)
    return scores


def require_causal(model: str, network: PreTrainedModel, ids: Sequence[int], scores: Tensor) -> None:
    """Refuse a model whose first token sees the next: `scores` (T, V) are those of `ids`. Raises ModelUnavailable."""
    other = probe_logits(model, network, [ids[0], *reversed(ids[1:])])
    if not torch.allclose(scores[0], other[0], rtol=0.02, atol=0.02 * float(scores[0].abs().max())):
        raise ModelUnavailable(model, "its tokens see those behind them, so it cannot write; choose another model")


def probes_of_rows(ids: Sequence[int], context: int) -> tuple[list[int], ...]:
    """The probe as one row, as it is and as many rows: quantised layers multiply few and many in ways of their own."""
    repeated = list(ids) * -(-MANY_TOKENS // len(ids))
    return list(ids[:1]), list(ids), repeated[: min(MANY_TOKENS, context)]


def nats_apart(plain: Tensor, quantised: Tensor) -> float:
    """Mean Kullback-Leibler divergence of next-token probabilities from what they were; both are scores (T, V)."""
    before, after = plain.log_softmax(-1), quantised.log_softmax(-1)
    return max(0.0, float((before.exp() * (before - after)).sum(-1).mean()))


def require_near(model: str, how: Quantization, plain: Sequence[Tensor], quantised: Sequence[Tensor]) -> str:
    """A note of how near a quantised model stays to what it was: scores (T, V) of the same probes, before and after.

    Raises ModelUnavailable where that is too far for any of them.
    """
    nats = max(map(nats_apart, plain, quantised))
    if not nats <= MOST_NATS[how]:
        reason = f"as {how} its probabilities are {nats:.3f} nats a token from what they were, more than "
        raise ModelUnavailable(model, f"{reason}{MOST_NATS[how]:g}; choose a higher precision")
    return f"as {how} its probabilities are {nats:.4f} nats a token from what they were"
