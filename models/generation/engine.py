"""The engine: completes many requests at once with one model, a step at a time.

Owns every request from `add` to its one Finished. Synchronous; knows no thread and no wire.
"""

import itertools
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import replace

import torch
from torch import Tensor

from ..loading.device import require_working
from . import sampling
from .base import EngineFacts, EngineLimits, EngineLoad, Prompt, PromptTokens
from .beam_group import BeamGroup
from .causal_lm import CausalLM
from .checks import require_possible
from .errors import DuplicateRequest, EngineFull, NonFiniteLogits
from .kv_cache import KVCache, KVShape, kv_dtype
from .logprobs import Likeliest, logprobs
from .model_runner import ModelRunner
from .output import TextOutput
from .prefill_budget import PrefillBudget
from .request import Event, Finished, FinishReason, Request, Scored, TokenLogprob
from .sampling import NOT_FINITE, Chosen, SamplerState
from .scheduler import ScheduledChunk, Scheduler
from .self_test import require_same_scores
from .sequence import Sequence

SCORED_BYTES = 64 * 2**20
"""For what a step says of prompts' tokens, (T, V) float32: many would take gigabytes, few make a model slow."""


class Engine:
    """A GenerationEngine over a loaded model, which it takes over.

    Raises ModelUnavailable where it does not give that model's own scores, or has no room for any text.
    """

    def __init__(self, loaded: CausalLM, limits: EngineLimits, clock: Callable[[], float] = time.perf_counter) -> None:
        self._loaded = loaded
        self._limits = limits
        device = torch.device(loaded.device)
        self._shape = _kept(loaded, device)
        self._cache = KVCache(self._shape, self._shape.tokens_in(limits.kv_bytes), device)
        self._runner = ModelRunner(loaded.network, self._cache, device)
        require_same_scores(loaded, self._runner, self._cache)
        self._scheduler = Scheduler(self._cache, limits, max(1, SCORED_BYTES // (4 * loaded.vocabulary)))
        self._pace, self._clock = PrefillBudget(limits.chunk_tokens), clock
        self._sequences: dict[str, Sequence] = {}
        self._groups: dict[str, BeamGroup] = {}
        self._events: list[Event] = []
        self._order = itertools.count()
        self._prompt_tokens = self._completion_tokens = 0
        self._step_texts = self._step_prompt_tokens = 0
        self.load = EngineLoad(kv_bytes=self._cache.nbytes)
        self.facts = EngineFacts(
            model=loaded.model,
            version=loaded.version,
            device=loaded.device,
            dtype=loaded.dtype,
            quantization=loaded.quantization,
            weight_bytes=loaded.weight_bytes,
            kv_bytes=self._cache.nbytes,
            max_tokens=loaded.max_tokens,
            vocabulary=loaded.vocabulary,
            chat=loaded.prompts.chat,
            fill=loaded.prompts.fill,
            max_running=limits.max_running,
            places=limits.max_running + limits.waiting,
            defaults=loaded.defaults,
            notes=loaded.notes,
        )

    @property
    def is_idle(self) -> bool:
        """See GenerationEngine."""
        return not self._sequences and not self._events

    def prompt_tokens(self, prompt: Prompt) -> PromptTokens:
        """See GenerationEngine."""
        return self._loaded.prompts(prompt)

    def check(self, request: Request) -> None:
        """See GenerationEngine."""
        require_possible(request, self.facts, self._limits.max_running, self._cache.tokens)

    def add(self, request: Request) -> None:
        """See GenerationEngine."""
        if request.id in self._sequences:
            raise DuplicateRequest(request.id)
        self.check(request)
        if len(self._scheduler.waiting) >= self._limits.waiting:
            raise EngineFull(f"{self._limits.waiting} requests wait")
        waiting_tokens = self._scheduler.waiting_tokens
        if waiting_tokens and waiting_tokens + len(request.prompt) > self._limits.waiting_tokens:
            raise EngineFull(f"{self._limits.waiting_tokens} tokens of prompts wait")
        self._prompt_tokens += len(request.prompt)
        if request.num_beams > 1:
            group = self._groups[request.id] = BeamGroup(request, next(self._order), self._scheduler)
            sequence = group.first
        else:
            sequence = self._sampled(request)
        self._sequences[request.id] = sequence
        self._scheduler.add(sequence)
        self._note_load()

    def _sampled(self, request: Request) -> Sequence:
        asked = request.sampling
        sampler = SamplerState(asked, request.prompt, self.facts.vocabulary, request.stop_ids, request.min_tokens)
        sequence = Sequence(request, next(self._order), sampler, self._text_output(request))
        if sequence.is_scored:
            sequence.scores.append(self._told(request.prompt[0], None, ()))
        return sequence

    def _text_output(self, request: Request) -> TextOutput:
        return TextOutput(request, self._loaded.tokenizer)

    def abort(self, request_id: str, reason: FinishReason) -> None:
        """See GenerationEngine."""
        if (sequence := self._sequences.get(request_id)) is not None:
            self._finish(sequence, reason)

    def step(self) -> list[Event]:
        """See GenerationEngine."""
        works, began = self._scheduler.plan(self._pace.chunk_tokens), self._clock()
        self._step_texts = sum(work.length == 1 for work in works)
        self._step_prompt_tokens = sum(work.length for work in works) - self._step_texts
        ends, rows = self._compute(works)
        drawn = [place for place, sequence in enumerate(ends) if not sequence.is_beam]
        if drawn:
            self._choose([ends[place] for place in drawn], rows if len(drawn) == len(ends) else rows[drawn])
        for request_id in dict.fromkeys(sequence.request.id for sequence in ends if sequence.is_beam):
            group = self._groups[request_id]
            try:
                self._search(group, rows[[ends.index(beam) for beam in group.beams]])
            except Exception as error:
                self._fail(group.first, error)
        if works:
            self._pace.ran(self._step_texts, self._step_prompt_tokens, self._clock() - began)
        self._note_load()
        events, self._events = self._events, []
        return events

    def _compute(self, works: Rows[ScheduledChunk]) -> tuple[list[Sequence], Tensor]:
        """Run works -> the sequences whose next token can be chosen, and their scores (R, V) float32, in order.

        Where that raises, each runs alone, and those that still raise fail.
        """
        nothing = torch.empty(0, self.facts.vocabulary)
        if not works:
            return [], nothing
        try:
            rows = self._runner.run(works)
        except Exception as error:
            if len(works) == 1:
                self._fail(works[0].sequence, error)
                return [], nothing
            alone = [self._compute([work]) for work in works if work.sequence.request.id in self._sequences]
            found = [(sequence, rows) for sequences, rows in alone for sequence in sequences]
            found = [(sequence, rows) for sequence, rows in found if sequence.request.id in self._sequences]
            return [sequence for sequence, _ in found], torch.cat([rows for _, rows in found]) if found else nothing
        return self._settle(works, rows)

    def _settle(self, works: Rows[ScheduledChunk], rows: Tensor) -> tuple[list[Sequence], Tensor]:
        """Note what was computed, by the runner's rows for it -> as `_compute`."""
        ends: dict[int, Sequence] = {}
        at = 0
        for work in works:
            sequence, scored, has_next = work.sequence, work.scored, work.ends
            rows_scored, at = rows[at : at + len(scored)], at + len(scored) + has_next
            try:
                if scored:
                    self._score(sequence, scored, rows_scored)
            except Exception as error:  # of one prompt: the others go on
                self._fail(sequence, error)
                continue
            self._scheduler.computed(work)
            if not sequence.missing and sequence.scores:
                self._events.append(Scored(sequence.request.id, tuple(sequence.scores)))
                sequence.scores.clear()
            if has_next:
                ends[at - 1] = sequence
            elif not sequence.missing:
                self._finish(sequence, "length")
        return list(ends.values()), rows if len(ends) == len(rows) else rows[list(ends)]

    def _score(self, sequence: Sequence, scored: range, rows: Tensor) -> None:
        """What the model says of some of a prompt's tokens, of the scores (R, V) behind those before them."""
        self._require_finite(rows)
        ids = sequence.tokens[scored.start : scored.stop]
        count = sequence.request.sampling.logprobs or 0
        found = logprobs(rows, ids, [count] * len(ids))
        sequence.scores += [self._told(token, *values) for token, values in zip(ids, found, strict=True)]

    def _choose(self, sequences: Rows[Sequence], rows: Tensor) -> None:
        """Each sequence's next token, of its scores (R, V)."""
        states = [sequence.sampler for sequence in sequences if sequence.sampler]
        try:
            tokens = sampling.sample(rows, states)
        except Exception as error:
            if len(sequences) == 1:
                self._fail(sequences[0], error)
            else:
                for place, sequence in enumerate(sequences):
                    self._choose([sequence], rows[place : place + 1])
            return
        for sequence, chosen in zip(sequences, tokens, strict=True):
            try:
                self._take(sequence, chosen)
            except Exception as error:  # of one text: the others go on
                self._fail(sequence, error)

    def _take(self, sequence: Sequence, chosen: Chosen) -> None:
        """The next token of a text, and what comes of it."""
        assert sequence.sampler is not None
        assert sequence.output is not None
        if chosen.id == NOT_FINITE:
            raise NonFiniteLogits(self.facts.model)
        sequence.tokens.append(chosen.id)
        sequence.sampler.append(chosen.id)
        self._completion_tokens += 1
        if chosen.id in sequence.request.stop_ids:
            self._finish(sequence, "stop", chosen.id)
            return
        told = None if chosen.logprob is None else self._told(chosen.id, chosen.logprob, chosen.top)
        piece, matched = sequence.output.push(chosen.id, told)
        if piece is not None:
            self._events.append(piece)
        if matched is not None:
            self._finish(sequence, "stop", matched)
        elif not sequence.left:
            self._finish(sequence, "length")

    def _told(self, token: int, logprob: float | None, top: Likeliest) -> TokenLogprob:
        text = self._loaded.tokenizer.token_bytes
        return TokenLogprob(token, text(token), logprob, tuple((other, text(other), value) for other, value in top))

    def _require_finite(self, rows: Tensor) -> None:
        if not bool(torch.isfinite(rows.amax(1)).all()):
            raise NonFiniteLogits(self.facts.model)

    def _search(self, group: BeamGroup, rows: Tensor) -> None:
        """The next tokens of a request's beams, of their scores (R, V) in the beams' order."""
        self._require_finite(rows)
        self._completion_tokens += 1
        if (best := group.advance(rows)) is None:
            return
        first, end = group.first, best.stop_id
        first.output = self._text_output(first.request)
        first.tokens = [*first.request.prompt, *best.tokens, *([] if end is None else [end])]
        for token in best.tokens:
            piece, matched = first.output.push(token, None)
            if piece is not None:
                self._events.append(piece)
            if matched is not None:
                self._finish(first, "stop", matched)
                return
        self._finish(first, best.reason, end)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        require_working(self.facts.device, error)
        sequence.output = None  # it may be what failed
        self._finish(sequence, "error", error=error)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        stop_reason: str | int | None = None,
        error: Exception | None = None,
    ) -> None:
        """The one end of a request; text that was held back, unless a stop string ended it, comes first."""
        request = sequence.request
        if sequence.output is not None and not isinstance(stop_reason, str):
            piece, matched = sequence.output.flush()
            if piece is not None:
                self._events.append(piece)
            if matched is not None and reason in ("stop", "length"):
                reason, stop_reason = "stop", matched
        sequence.scores.clear()  # the cache may keep the sequence
        self._events.append(Finished(request.id, reason, sequence.usage, stop_reason, error))
        del self._sequences[request.id]
        group = self._groups.pop(request.id, None)
        for member in group.all if group else (sequence,):
            self._scheduler.remove(member, keep=error is None)

    def _note_load(self) -> None:
        scheduler = self._scheduler
        self.load = EngineLoad(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            waiting_tokens=scheduler.waiting_tokens,
            kv_used_bytes=scheduler.used_tokens * self._shape.token_bytes,
            kv_bytes=self._cache.nbytes,
            prefix_hits=scheduler.prefix_hits,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            preempted=scheduler.preempted,
            step_texts=self._step_texts,
            step_prompt_tokens=self._step_prompt_tokens,
        )

    def close(self) -> None:
        """See GenerationEngine."""
        self._loaded.close()
        self._cache.close()


def _kept(loaded: CausalLM, device: torch.device) -> KVShape:
    """What the cache keeps of a token, in the type that is best there."""
    shape = loaded.kv_shape
    sharing = loaded.network.config.get_text_config().num_attention_heads // shape.heads
    return replace(shape, dtype=kv_dtype(shape.dtype, sharing, device))
