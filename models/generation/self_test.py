"""The last test at load: through the engine's cache and attention a model gives the scores that it gives by itself.

Owns the test and its tolerance. An architecture that needs more than the engine knows of fails here, and not in
somebody's request.
"""

import torch

from ..errors import ModelError, ModelUnavailable
from .causal_lm import CausalLM
from .kv_cache import KVCache
from .model_runner import ModelRunner
from .request import Request
from .scheduler import ScheduledChunk
from .sequence import Sequence

MOST_APART = 0.3
"""As a share of how far the scores themselves spread. Measured with random weights: the order of sums and another way
to multiply make 0.003 to 0.03 in models of a few layers, and up to 0.1 at 162 M parameters in bfloat16, int8 and int4;
an attention of another kind (diffllama) made 0.85 to 1.28."""


def require_same_scores(loaded: CausalLM, runner: ModelRunner, cache: KVCache) -> None:
    """Run the probe in parts, the last of one token, and compare. Raises ModelUnavailable, OutOfDeviceMemory."""
    sequence = Sequence(Request("probe", loaded.probe, max_tokens=1), 0, None, None)
    sequence.run = cache.allocate(len(loaded.probe))
    if sequence.run is None:
        reason = f"its cache holds {cache.tokens} tokens, too few for any text; raise generation.kv_gb"
        raise ModelUnavailable(loaded.model, reason)
    try:
        scores = _scores(sequence, runner)
    except ModelError:
        raise
    except Exception as error:  # an architecture that cannot may raise anything
        said = str(error).partition("\n")[0][:200]
        raise _unserved(loaded, said if isinstance(error, ValueError) else f"it fails with {said!r}") from error
    finally:
        cache.free(sequence.run)
    own = loaded.probe_scores
    apart = float((scores[0].cpu() - own).norm() / (own - own.mean()).norm())
    if not apart <= MOST_APART:
        raise _unserved(loaded, f"its scores come out {apart:.0%} of their spread away")


def _scores(sequence: Sequence, runner: ModelRunner) -> torch.Tensor:
    """Of what follows the sequence's tokens, (1, V) float32."""
    half = len(sequence.tokens) // 2
    scores = torch.empty(0)
    for length in (half, sequence.missing - half - 1, 1):
        if length:
            scores = runner.run([ScheduledChunk(sequence, length)])
            sequence.computed += length
    return scores


def _unserved(loaded: CausalLM, reason: str) -> ModelUnavailable:
    kind = loaded.network.config.model_type
    return ModelUnavailable(
        loaded.model, f"its architecture, {kind}, is not served by the engine: {reason}; choose another model"
    )
