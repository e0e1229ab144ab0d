"""A request on its way through the engine: its tokens, and how many of them the cache holds. Knows no model."""

from dataclasses import dataclass, field

from .kv_cache import CacheSlice
from .output import TextOutput
from .request import Request, TokenLogprob, Usage
from .sampling import SamplerState


@dataclass(slots=True, eq=False)
class Sequence:
    """tokens: of the prompt and made so far. computed: how many of them have keys and values in `run`.

    cached: tokens of the prompt that came out of the prefix cache. keys: the names of its full blocks (prefix_cache).
    scores: of the first tokens of the prompt, while there `is_scored`.
    turn: when its own turn is among those that wait (fair_order.py).
    sampler, output: None for a beam, whose tokens its search chooses. siblings: the other beams, for the first one.
    """

    request: Request
    order: int
    sampler: SamplerState | None
    output: TextOutput | None
    tokens: list[int] = field(default_factory=list)
    run: CacheSlice | None = None
    computed: int = 0
    cached: int = 0
    keys: list[int] = field(default_factory=list)
    scores: list[TokenLogprob] = field(default_factory=list)
    siblings: tuple["Sequence", ...] = ()
    turn: float = 0.0

    def __post_init__(self) -> None:
        self.tokens = self.tokens or list(self.request.prompt)

    @property
    def is_beam(self) -> bool:
        """Whether it is one of several that are searched together."""
        return self.request.num_beams > 1

    @property
    def is_scored(self) -> bool:
        """Whether what is computed now is a prompt whose scores are asked for, which no cache holds."""
        asked = self.request
        return asked.prompt_logprobs and asked.sampling.logprobs is not None and not self.made

    @property
    def missing(self) -> int:
        """Tokens to be computed before the next one can be chosen; 0 once it can."""
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
        """See Usage."""
        return Usage(len(self.request.prompt), self.cached, self.made)
