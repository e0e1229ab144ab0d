"""Refusal of requests that could never run: values out of range, unknown tokens, prompts that cannot fit."""

from collections.abc import Sequence

from .errors import InvalidRequest, PromptTooLong
from .kv_cache import BLOCK
from .types import EngineFacts, Request, Sampling

MAX_LOGPROBS = 20
MAX_BIAS = 100.0
MAX_BEAMS = 8
MAX_LENGTH_PENALTY = 10.0
_RANGES = {
    "temperature": (0, 2),
    "top_k": (0, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "seed": (0, 2**64 - 1),
}
_NOT_WITH_BEAMS = ("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs")
_PLAIN = Sampling()


def check_request(request: Request, facts: EngineFacts, max_running: int, cache_tokens: int) -> None:
    """Raises InvalidRequest, which names the field, and PromptTooLong. cache_tokens: size of the KV cache."""
    check_sampling(request.sampling, facts.vocabulary)
    _check_lengths(request)
    _check_tokens("prompt", request.prompt, facts.vocabulary)
    _check_tokens("stop_token_ids", sorted(request.stop_ids), facts.vocabulary)
    if "" in request.stop:
        raise InvalidRequest("stop", "a stop string is empty")
    _check_beams(request, max_running)
    total = len(request.prompt) + request.max_tokens
    for what, limit in token_limits(facts, cache_tokens, request.num_beams).items():
        if total > limit:
            raise PromptTooLong(len(request.prompt), request.max_tokens, limit, what)


def token_limits(facts: EngineFacts, cache_tokens: int, num_beams: int) -> dict[str, int]:
    """What a prompt and its completion may have together, by what limits them."""
    cached = cache_tokens // BLOCK // num_beams * BLOCK
    return {"the model's context": facts.max_tokens, "its cache on this worker": cached}


def check_sampling(sampling: Sampling, vocabulary: int) -> None:
    """Raises InvalidRequest. A top_k above the vocabulary is allowed and keeps every token."""
    for name, (low, high) in _RANGES.items():
        _check_range(name, getattr(sampling, name), low, high)
    if not 0 < sampling.top_p <= 1:
        raise InvalidRequest("top_p", f"{sampling.top_p} is not above 0 and at most 1")
    if sampling.logprobs is not None:
        _check_range("logprobs", sampling.logprobs, 0, MAX_LOGPROBS)
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocabulary:
            raise InvalidRequest("logit_bias", f"token id {token} does not exist; the vocabulary has {vocabulary}")
        _check_range("logit_bias", bias, -MAX_BIAS, MAX_BIAS)


def _check_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # so NaN is refused too
        raise InvalidRequest(field, f"{value} is not between {low} and {high}")


def _check_lengths(request: Request) -> None:
    if not request.prompt:
        raise InvalidRequest("prompt", "it has no tokens; send some text")
    if request.max_tokens < (1 if request.num_beams > 1 else 0):
        raise InvalidRequest("max_tokens", "it must be at least 1, and without beams 0")
    if not 0 <= request.min_tokens <= request.max_tokens:
        raise InvalidRequest("min_tokens", "it must be between 0 and max_tokens")


def _check_tokens(field: str, tokens: Sequence[int], vocabulary: int) -> None:
    if (unknown := next((token for token in tokens if not 0 <= token < vocabulary), None)) is not None:
        raise InvalidRequest(field, f"token id {unknown} does not exist")


def _check_beams(request: Request, max_running: int) -> None:
    _check_range("num_beams", request.num_beams, 1, MAX_BEAMS)
    _check_range("length_penalty", request.length_penalty, -MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY)
    if request.num_beams > max_running:
        raise InvalidRequest("num_beams", f"this worker runs {max_running} at once")
    if request.num_beams == 1:
        return
    for field in _NOT_WITH_BEAMS:
        if getattr(request.sampling, field) != getattr(_PLAIN, field):
            raise InvalidRequest(field, "a beam search takes none; leave num_beams out to sample")
