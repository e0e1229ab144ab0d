"""The state of one request in the engine: its tokens, and how many of them the cache holds."""

from dataclasses import dataclass, field

from .kv_cache import CacheSlice
from .output import TextOutput
from .sampler_state import SamplerState
from .types import Request, TokenLogprob, Usage


@dataclass(slots=True, eq=False)
class Sequence:
    """tokens: prompt and completion so far. computed: how many of them have keys and values in `cache_slice`.

    order: of arrival. cached: prompt tokens taken from the prefix cache. block_keys: of its full blocks in the prefix
    cache. scores: of the prompt's first tokens, while `is_scored`. start_tag: its place in the fair order of the queue
    (fair_order.py). sampler, output: None for a beam, whose tokens its search chooses. siblings: of the first beam, the
    other ones.
    """

    request: Request
    order: int
    sampler: SamplerState | None
    output: TextOutput | None
    tokens: list[int] = field(default_factory=list)
    cache_slice: CacheSlice | None = None
    computed: int = 0
    cached: int = 0
    block_keys: list[int] = field(default_factory=list)
    scores: list[TokenLogprob] = field(default_factory=list)
    siblings: tuple["Sequence", ...] = ()
    start_tag: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = self.tokens or list(self.request.prompt)

    @property
    def is_beam(self) -> bool:
        return self.request.num_beams > 1

    @property
    def is_scored(self) -> bool:
        """Whether its prompt's log-probabilities are being computed; the prefix cache does not hold those."""
        request = self.request
        return request.prompt_logprobs and request.sampling.logprobs is not None and not self.made

    @property
    def missing(self) -> int:
        """Tokens to compute before the next one can be chosen; 0 once it can."""
        return len(self.tokens) - self.computed

    @property
    def made(self) -> int:
        """Tokens of the completion so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def left(self) -> int:
        """Tokens that may still be made."""
        return self.request.max_tokens - self.made

    @property
    def usage(self) -> Usage:
        return Usage(len(self.request.prompt), self.cached, self.made)


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """The next `length` tokens of a sequence, to be computed in a step."""

    sequence: Sequence
    length: int

    @property
    def scored(self) -> range:
        """Places in the prompt of the tokens that this chunk scores: each is scored by the token before it."""
        sequence = self.sequence
        if not sequence.is_scored:
            return range(0)
        first = sequence.computed + 1
        return range(max(first, len(sequence.scores)), min(first + self.length, len(sequence.tokens)))

    @property
    def yields_token(self) -> bool:
        """Whether the next token, if there is to be one, can be chosen afterwards."""
        return self.length == self.sequence.missing and self.sequence.left > 0
