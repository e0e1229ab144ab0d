"""The engine: completes many requests at once with one model, step by step. Synchronous."""

import itertools
import time
from collections.abc import Sequence as Rows
from dataclasses import replace

import torch
from torch import Tensor

from ..loading.device import raise_if_lost
from ..tokenized_text import TokenizedText, Vocabulary
from . import sampling
from .beam_search import BeamGroup
from .causal_lm import CausalLM
from .errors import DuplicateRequest, EngineFull, NonFiniteLogits
from .kv_cache import KVCache
from .load_checks import require_same_logits
from .model_runner import ModelRunner
from .output import TextOutput
from .sampler_state import SamplerState
from .sampling import NOT_FINITE, Chosen, TopLogprobs, logprobs
from .scheduler import PrefillBudget, Scheduler
from .sequence import ScheduledChunk, Sequence
from .types import (
    Chat,
    EngineLimits,
    EngineLoad,
    Event,
    Finished,
    FinishReason,
    GenerationEngine,
    Plain,
    Prompt,
    PromptTokens,
    Request,
    Scored,
    TokenLogprob,
)
from .validation import check_request, token_limits

SCORED_BYTES = 64 * 2**20
"""Size of a step's logits of scored prompts, (T, V) float32: unbounded they would take gigabytes."""


class Engine(GenerationEngine):
    """An engine over a loaded model, which it closes.

    Raises ModelUnavailable if it does not reproduce the model's own scores, or has no cache for any text.
    """

    def __init__(self, loaded: CausalLM, limits: EngineLimits) -> None:
        self._loaded = loaded
        self._limits = limits
        device = torch.device(loaded.facts.device)
        self._shape = loaded.cache_shape()
        self._cache = KVCache(self._shape, self._shape.tokens_in(limits.kv_bytes), device)
        self._runner = ModelRunner(loaded.network, self._cache, device)
        require_same_logits(loaded, self._runner, self._cache)
        self._scheduler = Scheduler(self._cache, limits, max(1, SCORED_BYTES // (4 * loaded.facts.vocabulary)))
        self._prefill_budget = PrefillBudget(limits.chunk_tokens)
        self._sequences: dict[str, Sequence] = {}
        self._groups: dict[str, BeamGroup] = {}
        self._events: list[Event] = []
        self._order = itertools.count()
        self._step_decodes = self._step_prompt_tokens = 0
        self.load = EngineLoad(kv_bytes=self._cache.nbytes)
        self.facts = replace(
            loaded.facts,
            kv_bytes=self._cache.nbytes,
            max_running=limits.max_running,
            max_requests=limits.max_running + limits.waiting,
        )

    @property
    def is_idle(self) -> bool:
        return not self._sequences and not self._events

    @property
    def vocabulary(self) -> Vocabulary:
        return self._loaded.prompts.vocabulary

    def prompt_tokens(self, prompt: Prompt, max_tokens: int = 0, num_beams: int = 1) -> PromptTokens:
        room = min(token_limits(self.facts, self._cache.tokens, num_beams).values()) - max_tokens
        return self._loaded.prompts(prompt, room)

    def tokenized(self, prompt: Plain | Chat, special: bool = True, offsets: bool = True) -> TokenizedText:
        return self._loaded.prompts.tokenized(prompt, special, offsets)

    def check(self, request: Request) -> None:
        check_request(request, self.facts, self._limits.max_running, self._cache.tokens)

    def add(self, request: Request) -> None:
        if request.id in self._sequences:
            raise DuplicateRequest(request.id)
        self.check(request)
        if len(self._scheduler.waiting) >= self._limits.waiting:
            raise EngineFull(f"{self._limits.waiting} requests wait")
        waiting_tokens = self._scheduler.waiting_tokens
        if waiting_tokens and waiting_tokens + len(request.prompt) > self._limits.waiting_tokens:
            raise EngineFull(f"{self._limits.waiting_tokens} tokens of prompts wait")
        if request.num_beams > 1:
            group = self._groups[request.id] = BeamGroup(request, next(self._order), self._scheduler)
            sequence = group.first
        else:
            sequence = self._sampled(request)
        self._sequences[request.id] = sequence
        self._scheduler.add(sequence)
        self._update_load()

    def _sampled(self, request: Request) -> Sequence:
        sampler = SamplerState(
            request.sampling, request.prompt, self.facts.vocabulary, request.stop_ids, request.min_tokens
        )
        output = TextOutput(request, self._loaded.tokenizer)
        sequence = Sequence(request, next(self._order), sampler, output)
        if sequence.is_scored:
            sequence.scores.append(self._token_logprob(request.prompt[0], None, ()))
        return sequence

    def abort(self, request_id: str, reason: FinishReason) -> None:
        if (sequence := self._sequences.get(request_id)) is not None:
            self._finish(sequence, reason)

    def step(self) -> list[Event]:
        chunks, began = self._scheduler.plan(self._prefill_budget.tokens_per_prompt), time.perf_counter()
        self._step_decodes = sum(chunk.length == 1 for chunk in chunks)
        self._step_prompt_tokens = sum(chunk.length for chunk in chunks) - self._step_decodes
        ready, rows = self._compute(chunks)
        sampled = [place for place, sequence in enumerate(ready) if not sequence.is_beam]
        if sampled:
            self._sample([ready[place] for place in sampled], rows if len(sampled) == len(ready) else rows[sampled])
        for request_id in dict.fromkeys(sequence.request.id for sequence in ready if sequence.is_beam):
            group = self._groups[request_id]
            try:
                self._advance_beams(group, rows[[ready.index(beam) for beam in group.beams]])
            except Exception as error:
                self._fail(group.first, error)
        if chunks:
            self._prefill_budget.record(self._step_decodes, self._step_prompt_tokens, time.perf_counter() - began)
        self._update_load()
        events, self._events = self._events, []
        return events

    def _compute(self, chunks: Rows[ScheduledChunk]) -> tuple[list[Sequence], Tensor]:
        """Run chunks -> the sequences whose next token can be chosen, and their logits (R, V) float32, in order.

        If that raises, each chunk runs alone, and those that still raise fail.
        """
        nothing = torch.empty(0, self.facts.vocabulary)
        if not chunks:
            return [], nothing
        try:
            rows = self._runner.run(chunks)
        except Exception as error:
            if len(chunks) == 1:
                self._fail(chunks[0].sequence, error)
                return [], nothing
            alone = [self._compute([chunk]) for chunk in chunks if chunk.sequence.request.id in self._sequences]
            found = [(one[0], rows) for one, rows in alone if one and one[0].request.id in self._sequences]
            return [sequence for sequence, _ in found], torch.cat([rows for _, rows in found]) if found else nothing
        return self._record(chunks, rows)

    def _record(self, chunks: Rows[ScheduledChunk], rows: Tensor) -> tuple[list[Sequence], Tensor]:
        """Take over computed chunks and their logits, as ModelRunner.run returns them -> as `_compute`."""
        ready: dict[int, Sequence] = {}
        at = 0
        for chunk in chunks:
            sequence, scored, has_next = chunk.sequence, chunk.scored, chunk.yields_token
            rows_scored, at = rows[at : at + len(scored)], at + len(scored) + has_next
            try:
                if scored:
                    self._score(sequence, scored, rows_scored)
            except Exception as error:  # fails this prompt only
                self._fail(sequence, error)
                continue
            self._scheduler.mark_computed(chunk)
            if not sequence.missing and sequence.scores:
                self._events.append(Scored(sequence.request.id, tuple(sequence.scores)))
                sequence.scores.clear()
            if has_next:
                ready[at - 1] = sequence
            elif not sequence.missing:
                self._finish(sequence, "length")
        return list(ready.values()), rows if len(ready) == len(rows) else rows[list(ready)]

    def _score(self, sequence: Sequence, scored: range, rows: Tensor) -> None:
        """Note the log-probabilities of some of a prompt's tokens, given the logits (R, V) for them."""
        self._require_finite(rows)
        ids = sequence.tokens[scored.start : scored.stop]
        count = sequence.request.sampling.logprobs or 0
        found = logprobs(rows, ids, [count] * len(ids))
        sequence.scores += [self._token_logprob(token, *values) for token, values in zip(ids, found, strict=True)]

    def _sample(self, sequences: Rows[Sequence], rows: Tensor) -> None:
        """Choose each sequence's next token, given the logits (R, V)."""
        states = [sequence.sampler for sequence in sequences if sequence.sampler]
        try:
            tokens = sampling.sample(rows, states)
        except Exception as error:
            if len(sequences) == 1:
                self._fail(sequences[0], error)
            else:
                for place, sequence in enumerate(sequences):
                    self._sample([sequence], rows[place : place + 1])
            return
        for sequence, chosen in zip(sequences, tokens, strict=True):
            try:
                self._append(sequence, chosen)
            except Exception as error:  # fails this text only
                self._fail(sequence, error)

    def _append(self, sequence: Sequence, chosen: Chosen) -> None:
        assert sequence.sampler is not None
        assert sequence.output is not None
        if chosen.id == NOT_FINITE:
            raise NonFiniteLogits(self.facts.model)
        sequence.tokens.append(chosen.id)
        sequence.sampler.append(chosen.id)
        if chosen.id in sequence.request.stop_ids:
            self._finish(sequence, "stop", chosen.id)
            return
        logprob = None if chosen.logprob is None else self._token_logprob(chosen.id, chosen.logprob, chosen.top)
        piece, matched = sequence.output.push(chosen.id, logprob)
        if piece is not None:
            self._events.append(piece)
        if matched is not None:
            self._finish(sequence, "stop", matched)
        elif not sequence.left:
            self._finish(sequence, "length")

    def _token_logprob(self, token: int, logprob: float | None, top: TopLogprobs) -> TokenLogprob:
        text = self._loaded.tokenizer.token_bytes
        return TokenLogprob(token, text(token), logprob, tuple((other, text(other), value) for other, value in top))

    def _require_finite(self, rows: Tensor) -> None:
        if not bool(torch.isfinite(rows.amax(1)).all()):
            raise NonFiniteLogits(self.facts.model)

    def _advance_beams(self, group: BeamGroup, rows: Tensor) -> None:
        """Continue a beam search, given the logits (R, V) in the order of its beams."""
        self._require_finite(rows)
        if (best := group.advance(rows)) is None:
            return
        first, end = group.first, best.stop_id
        first.output = TextOutput(first.request, self._loaded.tokenizer)
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
        raise_if_lost(self.facts.device, error)
        sequence.output = None  # it may be what failed
        self._finish(sequence, "error", error=error)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        stop_reason: str | int | None = None,
        error: Exception | None = None,
    ) -> None:
        """End a request. Text that was held back comes first, unless a stop string ended it."""
        request = sequence.request
        if sequence.output is not None and not isinstance(stop_reason, str):
            piece, matched = sequence.output.flush()
            if piece is not None:
                self._events.append(piece)
            if matched is not None and reason in ("stop", "length"):
                reason, stop_reason = "stop", matched
        sequence.scores.clear()  # the prefix cache may keep the sequence
        self._events.append(Finished(request.id, reason, sequence.usage, stop_reason, error))
        del self._sequences[request.id]
        group = self._groups.pop(request.id, None)
        for member in group.all if group else (sequence,):
            self._scheduler.remove(member, keep=error is None)

    def _update_load(self) -> None:
        scheduler = self._scheduler
        self.load = EngineLoad(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            waiting_tokens=scheduler.waiting_tokens,
            kv_used_bytes=scheduler.used_tokens * self._shape.token_bytes,
            kv_bytes=self._cache.nbytes,
            preempted=scheduler.preempted,
            step_decodes=self._step_decodes,
            step_prompt_tokens=self._step_prompt_tokens,
        )

    def close(self) -> None:
        self._loaded.close()
        self._cache.close()
