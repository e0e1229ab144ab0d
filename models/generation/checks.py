"""What an engine refuses before any work: values out of range, tokens that do not exist, what can never fit."""

from collections.abc import Sequence

from . import sampling
from .base import EngineFacts
from .beam_search import check_beams
from .errors import InvalidRequest, PromptTooLong
from .kv_cache import BLOCK
from .request import Request, Sampling


def require_possible(request: Request, facts: EngineFacts, max_running: int, cache_tokens: int) -> None:
    """Refuse what could never run. Raises InvalidRequest, which names the field, and PromptTooLong."""
    sampling.check(request.sampling, facts.vocabulary)
    _require_lengths(request)
    _require_tokens("prompt", request.prompt, facts.vocabulary)
    _require_tokens("stop_token_ids", sorted(request.stop_ids), facts.vocabulary)
    if "" in request.stop:
        raise InvalidRequest("stop", "a stop string is empty")
    _require_beams(request, max_running)
    total = len(request.prompt) + request.max_tokens
    cached = cache_tokens // BLOCK // request.num_beams * BLOCK
    for limit, what in ((facts.max_tokens, "the model's context"), (cached, "its cache on this worker")):
        if total > limit:
            raise PromptTooLong(len(request.prompt), request.max_tokens, limit, what)


def _require_lengths(request: Request) -> None:
    if not request.prompt:
        raise InvalidRequest("prompt", "it has no tokens; send some text")
    if request.max_tokens < (1 if request.num_beams > 1 else 0):
        raise InvalidRequest("max_tokens", "it must be at least 1, and without beams 0")
    if not 0 <= request.min_tokens <= request.max_tokens:
        raise InvalidRequest("min_tokens", "it must be between 0 and max_tokens")


def _require_tokens(field: str, tokens: Sequence[int], vocabulary: int) -> None:
    if (unknown := next((token for token in tokens if not 0 <= token < vocabulary), None)) is not None:
        raise InvalidRequest(field, f"token id {unknown} does not exist")


def _require_beams(request: Request, max_running: int) -> None:
    check_beams(request.num_beams, request.length_penalty)
    if request.num_beams > max_running:
        raise InvalidRequest("num_beams", f"this worker runs {max_running} at once")
    if request.num_beams > 1 and (given := _adjusting(request.sampling)):
        raise InvalidRequest(given, "a beam search takes none; leave num_beams out to sample")


def _adjusting(asked: Sampling) -> str | None:
    """The field that would change the model's scores, if there is one."""
    plain = Sampling()
    fields = ("repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs")
    return next((field for field in fields if getattr(asked, field) != getattr(plain, field)), None)
