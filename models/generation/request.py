"""What is asked of the engine and what it tells: requests of token ids, pieces of text, one end for each.

Plain data. Knows no tensor and no tokeniser.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 keep every token.

    Penalties as everywhere: repetition divides or multiplies the logits of tokens seen in prompt or text, presence and
    frequency are subtracted for those in the text alone. logit_bias: token id -> what is added to its logit.
    seed: unsigned, 64 bits; the same one gives the same tokens whatever else runs. logprobs: None for none, else how
    many alternatives to tell of beside the chosen token's own.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One completion. prompt: token ids, BOS included; max_tokens, min_tokens: of the completion.

    stop_ids end the text and are no part of it: the model's own ends and what the caller adds. stop: strings that do.
    num_beams above 1 searches instead of sampling: its text comes at its end, and length_penalty is the exponent of
    the length by which a beam's score is divided. prompt_logprobs: whether to tell of the prompt's tokens too
    what sampling.logprobs asks for, if it does. caller: whose it is; callers have equal shares of what runs.
    """

    id: str
    prompt: Sequence[int]
    max_tokens: int
    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    num_beams: int = 1
    length_penalty: float = 1.0
    prompt_logprobs: bool = False
    caller: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability before penalties and filters, and the likeliest in its place.

    Their texts are bytes: where a character takes several tokens, each has some of its bytes. logprob: None for a
    prompt's first token, which follows from nothing.
    """

    id: int
    text: bytes
    logprob: float | None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request: of its prompt, of that out of the prefix cache, and made."""

    prompt: int
    cached: int
    completion: int


@dataclass(frozen=True, slots=True)
class Scored:
    """What a request's prompt_logprobs asks for, of all its prompt's tokens; before its first piece."""

    request: str
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """More text of a request: never empty, final, whole characters. tokens: how many became settled with it."""

    request: str
    text: str
    tokens: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The one end of a request. stop_reason: the stop string or the token id, the model's own end too, that ended it.

    error: what failed, with reason "error" only.
    """

    request: str
    reason: FinishReason
    usage: Usage
    stop_reason: str | int | None = None
    error: Exception | None = None


Event: TypeAlias = Scored | Piece | Finished
