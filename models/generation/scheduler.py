"""Who runs in the next step: decodes first, then prompts in chunks, each with room in the cache.

Owns the queue, those that run and their place in the cache. Runs no model.
"""

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass

from ..fair_order import FairOrder
from .base import EngineLimits
from .kv_cache import BLOCK, CacheSlice, KVCache
from .prefix_cache import PrefixCache, common, first_block
from .sequence import Sequence

HEADROOM = 256
"""Tokens for which a sequence gets room ahead of need, where it may make so many."""
ALONE = 4
"""Where nobody decodes, and so nobody waits for the next token, chunks may be so many times the limit."""


@dataclass(frozen=True, slots=True)
class ScheduledChunk:
    """The next `length` tokens of a sequence, to be computed in a step."""

    sequence: Sequence
    length: int

    @property
    def scored(self) -> range:
        """The places in the prompt of those tokens whose scores come of it; they come behind the token before."""
        sequence = self.sequence
        if not sequence.is_scored:
            return range(0)
        first = sequence.computed + 1
        return range(max(first, len(sequence.scores)), min(first + self.length, len(sequence.tokens)))

    @property
    def ends(self) -> bool:
        """Whether the next token, if there is to be one, can be chosen behind it."""
        return self.length == self.sequence.missing and self.sequence.left > 0


class Scheduler:
    """A queue, and the sequences that run.

    Callers take turns: of what waits goes first what belongs to the caller of whom fewest run, and where there is no
    room for it the one of whom most run gives some up. Of one caller's, those that came first go first and are turned
    out last.

    scored_tokens: of prompts whose scores are asked for, in a step; each takes a row of the whole vocabulary.
    """

    def __init__(self, cache: KVCache, limits: EngineLimits, scored_tokens: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preempted = 0
        self.prefix_hits = 0
        self._cache = cache
        self._limits = limits
        self._scored_tokens = scored_tokens
        self._prefixes = PrefixCache()
        self._prompts: deque[Sequence] = deque()
        self._turns = FairOrder()

    @property
    def used_tokens(self) -> int:
        """Tokens of the cache that running sequences take."""
        return self._cache.used_tokens - self._prefixes.kept_tokens

    @property
    def waiting_tokens(self) -> int:
        """Tokens of the sequences that wait."""
        return sum(len(sequence.tokens) for sequence in self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at the end of the queue."""
        sequence.turn = self._turns.take(sequence.request.caller, _most(sequence))
        self.waiting.append(sequence)

    def fork(self, sequence: Sequence, parent: Sequence) -> None:
        """Let a beam go on from what the cache has of another one."""
        assert sequence.run is not None
        assert parent.run is not None
        self._cache.copy(parent.run, sequence.run, parent.computed)
        sequence.computed = parent.computed
        if sequence not in self.running:
            self.running.append(sequence)

    def remove(self, sequence: Sequence, keep: bool = True) -> None:
        """Take out a sequence that has ended; keep: what the cache has of it, for others, while there is room."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence.run is None:
            return
        self._leave(sequence)
        if keep and self._prefixes.keep(sequence):
            self._cache.shrink(sequence.run, sequence.computed)
        else:
            self._free(sequence)

    def computed(self, work: ScheduledChunk) -> None:
        """A step has computed this."""
        work.sequence.computed += work.length
        if not work.sequence.is_beam:  # whose tokens change
            self._prefixes.note(work.sequence)

    def plan(self, chunk_tokens: int) -> list[ScheduledChunk]:
        """What the next step computes; empty where there is nothing to do.

        chunk_tokens: of a prompt, beside decodes. The more prompts wait the longer a step may take, up to the limit:
        else they would wait ever longer.
        """
        self._admit()
        decodes = [ScheduledChunk(sequence, 1) for sequence in self._decoding() if self._has_room(sequence)]
        decodes = [work for work in decodes if work.sequence.run is not None]  # a later one may have turned it out
        most = self._limits.chunk_tokens
        return [*decodes, *self._chunks(min(most, chunk_tokens * len(self._prompts)) if decodes else ALONE * most)]

    def _admit(self) -> None:
        while self.waiting:
            running = self._running_by_caller()
            sequence = min(self.waiting, key=lambda waits: (running[waits.request.caller], waits.turn))
            if not self._place_in_turn(sequence):
                return
            callers = {other.request.caller for other in (*self.waiting, *self.running)}
            self._turns.go(sequence.turn, _most(sequence), len(callers))
            self.waiting.remove(sequence)
            self.running.append(sequence)
            self._prompts.append(sequence)

    def _place_in_turn(self, sequence: Sequence) -> bool:
        """Place a sequence, if need be in room that a caller gives up of whom no fewer run even then."""
        while not self._place(sequence):
            running, other = self._running_by_caller(), self._last_in_turn()
            if other is None or running[other.request.caller] < running[sequence.request.caller] + 2:
                return False
            self._preempt(other)
        return True

    def _running_by_caller(self) -> Counter[str]:
        return Counter(sequence.request.caller for sequence in self.running)

    def _last_in_turn(self) -> Sequence | None:
        """Who is turned out first: the latest of the caller of whom most run. None where only beams do."""
        running = self._running_by_caller()
        theirs = (sequence for sequence in self.running if not sequence.is_beam)
        return max(theirs, key=lambda runs: (running[runs.request.caller], runs.order), default=None)

    def _decoding(self) -> list[Sequence]:
        return sorted((s for s in self.running if s.missing == 1 and s not in self._prompts), key=_order)

    def _chunks(self, budget: int) -> Iterator[ScheduledChunk]:
        """Parts of prompts within a budget of tokens, in turn: whoever got one goes to the end."""
        leaders, scored = self._leaders(), self._scored_tokens
        for sequence in list(self._prompts):
            if budget <= 0:
                return
            if not sequence.computed and not sequence.is_scored:
                leader = leaders.get(first_block(sequence.tokens), sequence)
                if leader is not sequence and _computes_for(leader, sequence):
                    continue
                self._reuse(sequence)
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
        """Of the prompts that begin alike, the one furthest on: the others wait and find it computed."""
        furthest: dict[int | None, Sequence] = {}
        for sequence in self._prompts:
            if (name := first_block(sequence.tokens)) is not None:
                leader = furthest.setdefault(name, sequence)
                if sequence.computed > leader.computed:
                    furthest[name] = sequence
        return furthest

    def _reuse(self, sequence: Sequence) -> None:
        """Copy what the cache has of the same beginning."""
        found = self._prefixes.longest(sequence.tokens)
        if found is None:
            return
        holder, tokens = found
        assert holder.run is not None
        assert sequence.run is not None
        self._cache.copy(holder.run, sequence.run, tokens)
        sequence.computed = tokens
        if not sequence.made:  # else it has been turned out, and once had computed them itself
            sequence.cached = tokens
            self.prefix_hits += tokens

    def _place(self, sequence: Sequence) -> bool:
        """Give a sequence, and its siblings, their runs, if there is room without turning out others that run."""
        self._prefixes.longest(sequence.tokens)  # what it will copy has been used last, and is turned out last
        beams = (sequence, *sequence.siblings)
        taken = sum(other.request.num_beams for other in self.running if other.siblings or not other.is_beam)
        if taken + len(beams) > self._limits.max_running:
            return False
        ahead = sequence.left if sequence.is_beam else min(sequence.left, HEADROOM)  # beams never grow
        for beam in beams:
            beam.run = self._room(len(sequence.tokens) + ahead)
        if all(beam.run for beam in beams):
            return True
        for beam in beams:
            if beam.run:
                self._free(beam)
        return False

    def _room(self, tokens: int) -> CacheSlice | None:
        while (run := self._cache.allocate(tokens)) is None:
            if (oldest := self._prefixes.oldest()) is None:
                return None
            self._free(oldest)
        return run

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether a decoding sequence has room for its next token; others are turned out for it."""
        while sequence.run is not None and sequence.run.capacity < len(sequence.tokens):
            need = len(sequence.tokens)
            for tokens in (need + min(sequence.left, HEADROOM), need):
                if self._cache.grow(sequence.run, tokens, sequence.computed):
                    return True
            if (oldest := self._prefixes.oldest()) is not None:
                self._free(oldest)
            else:
                other = self._last_in_turn()
                assert other is not None  # it may be the sequence itself
                self._preempt(other)
        return sequence.run is not None

    def _preempt(self, sequence: Sequence) -> None:
        """Turn out a sequence: all its tokens are computed again, and none of them changes."""
        self.preempted += 1
        self._leave(sequence)
        self._free(sequence)
        self.waiting.appendleft(sequence)

    def _leave(self, sequence: Sequence) -> None:
        if sequence in self.running:
            self.running.remove(sequence)
        if sequence in self._prompts:
            self._prompts.remove(sequence)

    def _free(self, sequence: Sequence) -> None:
        assert sequence.run is not None
        self._prefixes.forget(sequence)
        self._cache.free(sequence.run)
        sequence.run, sequence.computed = None, 0


def _computes_for(leader: Sequence, follower: Sequence) -> bool:
    """Whether blocks are still being computed with which another prompt begins too."""
    alike = common(leader.tokens, follower.tokens, min(len(leader.tokens), len(follower.tokens) - 1))
    return leader.computed < alike // BLOCK * BLOCK


def _most(sequence: Sequence) -> int:
    """Tokens that a sequence may come to."""
    return len(sequence.request.prompt) + sequence.request.max_tokens


def _order(sequence: Sequence) -> int:
    return sequence.order
