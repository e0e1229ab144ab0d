"""Self-tests at load: logits are finite and causal, close to the unquantised model's, and the same through the engine.

There is no reference in float32: reading seven billion weights a second time would cost more than the load. The oracle
tests check that the engine's pass equals the model's own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..catalogue import Quantization
from ..errors import ModelError, ModelUnavailable, first_line
from ..loading.device import device_errors
from .causal_lm import CausalLM
from .errors import NonFiniteLogits
from .kv_cache import KVCache
from .model_runner import ModelRunner
from .sequence import ScheduledChunk
from .sequence import Sequence as EngineSequence
from .types import Request

TEST_TEXT = (
    "def fibonacci(n: int) -> int:\n"
    '    """The n-th Fibonacci number."""\n'
    "    a, b = 0, 1\n"
    "    for _ in range(n):\n"
    "        a, b = b, a + b\n"
    "    return a\n"
)
TEST_TOKENS = 64
MANY_TOKENS = 96
"""Beyond the number of rows up to which any kernel for few rows is used (int8.FEW_ROWS)."""
MAX_DIVERGENCE: dict[Quantization, float] = {"int8": 0.3, "int4": 3.0}
"""Kullback-Leibler divergence, in nats a token, above which a quantised model counts as broken. The divergence itself
goes into the notes, for the operator to judge."""
MAX_DIFFERENCE = 0.3
"""Of the engine's logits from the model's own, relative to their spread. With random weights, other kernels and orders
of summation cause a difference of 0.003 to 0.03 in models of a few layers, and of up to 0.1 at 162 M parameters in
bfloat16, int8 and int4; an attention of another kind (diffllama) caused 0.85 to 1.28."""


def model_logits(model: str, network: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    """Logits (T, V) float32 on the CPU for the token after each of the ids. Raises NonFiniteLogits."""
    device = network.device
    with torch.inference_mode(), device_errors(str(device), model):
        logits: Tensor = network(input_ids=torch.tensor([list(ids)], device=device), use_cache=False).logits[0]
        logits = logits.float().cpu()
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteLogits(model)
    return logits


def require_causal(model: str, network: PreTrainedModel, ids: Sequence[int], logits: Tensor) -> None:
    """Raises ModelUnavailable if the first token sees later ones. logits (T, V): `model_logits` of ids."""
    other = model_logits(model, network, [ids[0], *reversed(ids[1:])])
    if not torch.allclose(logits[0], other[0], rtol=0.02, atol=0.02 * float(logits[0].abs().max())):
        raise ModelUnavailable(
            model, "its scores for a token depend on later tokens, so it cannot generate text; choose another model"
        )


def ids_of_few_and_many_rows(ids: Sequence[int], context: int) -> tuple[list[int], ...]:
    """The ids in one row, as they are, and in many: quantised layers use other kernels for few rows than for many."""
    repeated = list(ids) * -(-MANY_TOKENS // len(ids))
    return list(ids[:1]), list(ids), repeated[: min(MANY_TOKENS, context)]


def divergence(plain: Tensor, quantised: Tensor) -> float:
    """Mean Kullback-Leibler divergence of the next token's distribution, in nats. plain, quantised: logits (T, V)."""
    before, after = plain.log_softmax(-1), quantised.log_softmax(-1)
    return max(0.0, float((before.exp() * (before - after)).sum(-1).mean()))


def require_near(model: str, quantization: Quantization, plain: Sequence[Tensor], quantised: Sequence[Tensor]) -> str:
    """A note with the largest divergence, given logits (T, V) of the same ids before and after quantising.

    Raises ModelUnavailable if it is too large.
    """
    nats, limit = max(map(divergence, plain, quantised)), MAX_DIVERGENCE[quantization]
    note = f"as {quantization} its probabilities are {nats:.4f} nats a token from what they were"
    if not nats <= limit:
        raise ModelUnavailable(model, f"{note}, more than {limit:g}; choose a higher precision")
    return note


def require_same_logits(loaded: CausalLM, runner: ModelRunner, cache: KVCache) -> None:
    """Compare the logits of test_ids through the engine with the model's own: an architecture that needs more than the
    engine supports fails here, not in a request. Raises ModelUnavailable, OutOfDeviceMemory."""
    sequence = EngineSequence(Request("test", loaded.test_ids, max_tokens=1), 0, None, None)
    sequence.cache_slice = cache.allocate(len(loaded.test_ids))
    if sequence.cache_slice is None:
        reason = f"its cache holds {cache.tokens} tokens, too few for any text; raise generation.kv_gb"
        raise ModelUnavailable(loaded.facts.model, reason)
    try:
        logits = _engine_logits(sequence, runner)
    except ModelError:
        raise
    except Exception as error:  # an unsupported architecture may raise anything
        fault = first_line(error) if isinstance(error, ValueError) else f"it fails with {first_line(error)!r}"
        raise _unserved(loaded, fault) from error
    finally:
        cache.free(sequence.cache_slice)
    own = loaded.test_logits
    difference = float((logits[0].cpu() - own).norm() / (own - own.mean()).norm())
    if not difference <= MAX_DIFFERENCE:
        raise _unserved(loaded, f"its logits come out {difference:.0%} of their spread away")


def _engine_logits(sequence: EngineSequence, runner: ModelRunner) -> Tensor:
    """Logits (1, V) float32 for the token after the sequence, computed in chunks, the last of one token."""
    half = len(sequence.tokens) // 2
    logits = torch.empty(0)
    for length in (half, sequence.missing - half - 1, 1):
        if length:
            logits = runner.run([ScheduledChunk(sequence, length)])
            sequence.computed += length
    return logits


def _unserved(loaded: CausalLM, reason: str) -> ModelUnavailable:
    kind = loaded.network.config.model_type
    return ModelUnavailable(
        loaded.facts.model, f"its architecture, {kind}, is not served by the engine: {reason}; choose another model"
    )
