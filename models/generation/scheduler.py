"""The scheduler: what each step computes. Decodes come first, then prompts in chunks, each with space in the cache."""

from collections import Counter, deque
from collections.abc import Iterator
from operator import attrgetter

from ..fair_order import FairOrder
from .kv_cache import BLOCK, CacheSlice, KVCache
from .prefix_cache import PrefixCache, common_prefix, first_block
from .sequence import ScheduledChunk, Sequence
from .types import EngineLimits

HEADROOM = 256
"""Tokens that a sequence gets cache space for in advance, if it may make that many."""
PREFILL_ONLY_FACTOR = 4
"""A step without decodes may compute this many times limits.chunk_tokens: nobody waits for a next token."""
MAX_STEP_FACTOR = 2.5
"""A step with a chunk of a prompt may take this many times as long as one without."""
MIN_CHUNK_TOKENS = 16
"""Computed of prompts even if the step then takes longer, so that every prompt ends."""
_WEIGHT = 0.2  # of the latest step in an average
_ORDER = attrgetter("order")


class PrefillBudget:
    """Prompt tokens that a step with decodes may compute, learned from how long steps take.

    max_tokens: the upper limit, which also applies until steps with and without prompts were seen.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._decode_s: float | None = None
        self._token_s: float | None = None

    @property
    def tokens_per_prompt(self) -> int:
        """What each waiting prompt adds to the next step's budget; the first in turn may take all of it."""
        if not self._decode_s or not self._token_s:
            return self._max_tokens
        fitting = int((MAX_STEP_FACTOR - 1) * self._decode_s / self._token_s)
        return max(min(MIN_CHUNK_TOKENS, self._max_tokens), min(self._max_tokens, fitting))

    def record(self, decodes: int, prompt_tokens: int, seconds: float) -> None:
        if not prompt_tokens:
            self._decode_s = _averaged(self._decode_s, seconds)
        elif decodes and self._decode_s:
            self._token_s = _averaged(self._token_s, max(0.0, seconds - self._decode_s) / prompt_tokens)


def _averaged(average: float | None, value: float) -> float:
    return value if average is None else average + _WEIGHT * (value - average)


class Scheduler:
    """The waiting queue and the running sequences.

    The caller with the fewest running sequences is admitted next. If there is no space for it, the caller with the most
    gives some up, as long as it keeps as many as the other gets. Within a caller, earlier sequences are admitted first
    and preempted last.

    scored_tokens: of scored prompts, per step; each takes a row of logits over the vocabulary.
    """

    def __init__(self, cache: KVCache, limits: EngineLimits, scored_tokens: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preempted = 0
        self._cache = cache
        self._limits = limits
        self._scored_tokens = scored_tokens
        self._prefixes = PrefixCache()
        self._prompts: deque[Sequence] = deque()
        self._fair_order = FairOrder()

    @property
    def used_tokens(self) -> int:
        """Cache tokens of running sequences."""
        return self._cache.used_tokens - self._prefixes.kept_tokens

    @property
    def waiting_tokens(self) -> int:
        return sum(len(sequence.tokens) for sequence in self.waiting)

    def add(self, sequence: Sequence) -> None:
        sequence.start_tag = self._fair_order.take(sequence.request.caller, _total_tokens(sequence))
        self.waiting.append(sequence)

    def fork(self, sequence: Sequence, parent: Sequence) -> None:
        """Let a beam continue from the cached tokens of another one."""
        assert sequence.cache_slice is not None
        assert parent.cache_slice is not None
        self._cache.copy(parent.cache_slice, sequence.cache_slice, parent.computed)
        sequence.computed = parent.computed
        if sequence not in self.running:
            self.running.append(sequence)

    def remove(self, sequence: Sequence, keep: bool = True) -> None:
        """Remove a sequence that has ended. keep: offer its cached tokens to others while there is space."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence.cache_slice is None:
            return
        self._stop_running(sequence)
        if keep and self._prefixes.keep(sequence):
            self._cache.shrink(sequence.cache_slice, sequence.computed)
        else:
            self._free(sequence)

    def mark_computed(self, chunk: ScheduledChunk) -> None:
        chunk.sequence.computed += chunk.length
        if not chunk.sequence.is_beam:  # whose tokens change
            self._prefixes.register(chunk.sequence)

    def plan(self, tokens_per_prompt: int) -> list[ScheduledChunk]:
        """What the next step computes; empty if there is nothing to do.

        tokens_per_prompt: what each waiting prompt adds to the budget of a step with decodes, up to the limit. The more
        prompts wait, the longer a step may take, since otherwise they would wait ever longer.
        """
        self._admit()
        decoding = sorted((s for s in self.running if s.missing == 1 and s not in self._prompts), key=_ORDER)
        decodes = [ScheduledChunk(sequence, 1) for sequence in decoding if self._make_space(sequence)]
        decodes = [chunk for chunk in decodes if chunk.sequence.cache_slice is not None]  # a later one may preempt it
        limit = self._limits.chunk_tokens
        budget = min(limit, tokens_per_prompt * len(self._prompts)) if decodes else PREFILL_ONLY_FACTOR * limit
        return [*decodes, *self._chunks(budget)]

    def _admit(self) -> None:
        while self.waiting:
            running = self._running_by_caller()
            sequence = min(self.waiting, key=lambda waits: (running[waits.request.caller], waits.start_tag))
            if not self._allocate_fairly(sequence):
                return
            callers = {other.request.caller for other in (*self.waiting, *self.running)}
            self._fair_order.serve(sequence.start_tag, _total_tokens(sequence), len(callers))
            self.waiting.remove(sequence)
            self.running.append(sequence)
            self._prompts.append(sequence)

    def _allocate_fairly(self, sequence: Sequence) -> bool:
        """Allocate, preempting sequences of a caller that keeps as many running as this one's caller then has."""
        while not self._allocate(sequence):
            running, victim = self._running_by_caller(), self._next_victim()
            if victim is None or running[victim.request.caller] < running[sequence.request.caller] + 2:
                return False
            self._preempt(victim)
        return True

    def _running_by_caller(self) -> Counter[str]:
        return Counter(sequence.request.caller for sequence in self.running)

    def _next_victim(self) -> Sequence | None:
        """The latest sequence of the caller with the most running; None if only beams run."""
        running = self._running_by_caller()
        candidates = (sequence for sequence in self.running if not sequence.is_beam)
        return max(candidates, key=lambda runs: (running[runs.request.caller], runs.order), default=None)

    def _chunks(self, budget: int) -> Iterator[ScheduledChunk]:
        """Chunks of prompts within a budget of tokens.

        The first in turn takes all it can; one that is not finished goes to the end.
        """
        leaders, scored = self._leaders(), self._scored_tokens
        for sequence in list(self._prompts):
            if budget <= 0:
                return
            if not sequence.computed and not sequence.is_scored:
                leader = leaders.get(first_block(sequence.tokens), sequence)
                if leader is not sequence and _computes_prefix_of(leader, sequence):
                    continue
                self._reuse_prefix(sequence)
            length = min(budget, sequence.missing)
            if sequence.is_scored:
                length = min(length, scored)
                scored -= length
                if not length:
                    continue
            budget -= length
            self._prompts.remove(sequence)
            if length < sequence.missing:
                self._prompts.append(sequence)
            yield ScheduledChunk(sequence, length)

    def _leaders(self) -> dict[int | None, Sequence]:
        """Of the prompts with the same first block, the one furthest computed: the others wait for its prefix."""
        furthest: dict[int | None, Sequence] = {}
        for sequence in self._prompts:
            if (key := first_block(sequence.tokens)) is not None:
                leader = furthest.setdefault(key, sequence)
                if sequence.computed > leader.computed:
                    furthest[key] = sequence
        return furthest

    def _reuse_prefix(self, sequence: Sequence) -> None:
        """Copy the keys and values of the same beginning, if the cache has them."""
        found = self._prefixes.longest(sequence.tokens)
        if found is None:
            return
        holder, tokens = found
        assert holder.cache_slice is not None
        assert sequence.cache_slice is not None
        self._cache.copy(holder.cache_slice, sequence.cache_slice, tokens)
        sequence.computed = tokens
        if not sequence.made:  # else it was preempted, and had computed them itself
            sequence.cached = tokens

    def _allocate(self, sequence: Sequence) -> bool:
        """Give a sequence and its siblings cache slices, if there is space without preempting any."""
        self._prefixes.longest(sequence.tokens)  # marks what it will copy as used, so that it is evicted last
        beams = (sequence, *sequence.siblings)
        taken = sum(other.request.num_beams for other in self.running if other.siblings or not other.is_beam)
        if taken + len(beams) > self._limits.max_running:
            return False
        ahead = sequence.left if sequence.is_beam else min(sequence.left, HEADROOM)  # beams never grow
        for beam in beams:
            beam.cache_slice = self._new_slice(len(sequence.tokens) + ahead)
        if all(beam.cache_slice for beam in beams):
            return True
        for beam in beams:
            if beam.cache_slice:
                self._free(beam)
        return False

    def _new_slice(self, tokens: int) -> CacheSlice | None:
        while (new := self._cache.allocate(tokens)) is None:
            if (evicted := self._prefixes.evict()) is None:
                return None
            self._free(evicted)
        return new

    def _make_space(self, sequence: Sequence) -> bool:
        """Whether a decoding sequence has space for its next token, after evicting and preempting as needed."""
        while sequence.cache_slice is not None and sequence.cache_slice.capacity < len(sequence.tokens):
            need = len(sequence.tokens)
            for tokens in (need + min(sequence.left, HEADROOM), need):
                if self._cache.grow(sequence.cache_slice, tokens, sequence.computed):
                    return True
            if (evicted := self._prefixes.evict()) is not None:
                self._free(evicted)
            else:
                victim = self._next_victim()
                assert victim is not None  # it may be the sequence itself
                self._preempt(victim)
        return sequence.cache_slice is not None

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back into the queue. Its tokens stay; their keys and values are recomputed."""
        self.preempted += 1
        self._stop_running(sequence)
        self._free(sequence)
        self.waiting.appendleft(sequence)

    def _stop_running(self, sequence: Sequence) -> None:
        if sequence in self.running:
            self.running.remove(sequence)
        if sequence in self._prompts:
            self._prompts.remove(sequence)

    def _free(self, sequence: Sequence) -> None:
        assert sequence.cache_slice is not None
        self._prefixes.forget(sequence)
        self._cache.free(sequence.cache_slice)
        sequence.cache_slice, sequence.computed = None, 0


def _computes_prefix_of(leader: Sequence, follower: Sequence) -> bool:
    """Whether the leader has blocks left to compute with which the follower begins too."""
    limit = min(len(leader.tokens), len(follower.tokens) - 1)
    return leader.computed < common_prefix(leader.tokens, follower.tokens, limit) // BLOCK * BLOCK


def _total_tokens(sequence: Sequence) -> int:
    """Prompt and completion at most."""
    return len(sequence.request.prompt) + sequence.request.max_tokens
