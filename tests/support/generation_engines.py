"""Engines over the random models of generation_models.py, and helpers to run requests on them."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from models.catalogue import ModelSpec
from models.generation.causal_lm import CausalLM
from models.generation.engine import Engine
from models.generation.kv_cache import BLOCK
from models.generation.output import Detokeniser
from models.generation.types import EngineLimits, Event, Finished, Piece, Request, Sampling, Scored
from models.loading.loader import LoadOptions, load_generator

GREEDY = Sampling(temperature=0)


def read(folder: Path, **options: Any) -> CausalLM:
    """A model on the CPU, in fp32 by default."""
    spec = ModelSpec(id="random", kind="generation", folder=folder)
    return load_generator(spec, LoadOptions(device="cpu", **{"dtype": "fp32", **options}))


def new_engine(loaded: CausalLM, cache_tokens: int = 4096, **limits: Any) -> Engine:
    """An engine with a cache of this many tokens in fp32."""
    shape = replace(loaded.kv_shape, dtype=torch.float32)
    return Engine(loaded, EngineLimits(kv_bytes=(cache_tokens + BLOCK) * shape.token_bytes, **limits))


def greedy(name: str, prompt: list[int], max_tokens: int, **fields: Any) -> Request:
    return Request(name, prompt, max_tokens, **{"sampling": GREEDY, **fields})


@dataclass
class Outcome:
    """The events of one request."""

    pieces: list[Piece] = field(default_factory=list)
    finished: Finished | None = None
    scored: Scored | None = None

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class Outcomes(defaultdict[str, Outcome]):
    """The events of each request; checks that each ends once, last."""

    def __init__(self) -> None:
        super().__init__(Outcome)

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            outcome = self[event.request]
            assert outcome.finished is None, "something came after the end"
            if isinstance(event, Piece):
                assert event.text
                outcome.pieces.append(event)
            elif isinstance(event, Scored):
                assert outcome.scored is None
                assert not outcome.pieces, "the prompt comes first"
                outcome.scored = event
            else:
                outcome.finished = event


def run(engine: Engine, *requests: Request, steps: int = 5000) -> Outcomes:
    """Run all requests at once, to the end."""
    for request in requests:
        engine.add(request)
    outcomes = Outcomes()
    while not engine.is_idle:
        outcomes.take(engine.step())
        steps -= 1
        assert steps, "the engine does not come to an end"
    return outcomes


class Oracle:
    """transformers' own `generate` over the same folder, in fp32."""

    def __init__(self, folder: Path, loaded: CausalLM) -> None:
        self.network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = loaded.tokenizer

    def ids(
        self, prompt: list[int], max_tokens: int, stop_ids: frozenset[int] = frozenset(), **options: Any
    ) -> list[int]:
        """The completion's token ids, the one that ends it included."""
        ends = sorted(stop_ids) or None
        with torch.no_grad():
            made = self.network.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=max_tokens,
                **{"do_sample": False, "eos_token_id": ends, "pad_token_id": 0, **options},
            )
        found: list[int] = made[0, len(prompt) :].tolist()
        return found

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities (T, V) for the token after each token."""
        with torch.no_grad():
            return torch.log_softmax(self.network(torch.tensor([ids])).logits[0].float(), -1)

    def text(self, prompt: list[int], max_tokens: int, stop_ids: frozenset[int] = frozenset(), **options: Any) -> str:
        """The completion as the one-shot text."""
        ids = self.ids(prompt, max_tokens, stop_ids, **options)
        output = Detokeniser(self._tokenizer, prompt)
        return "".join([*map(output.push, (token for token in ids if token not in stop_ids)), output.flush()])


def assert_scored(scored: Scored | None, ids: list[int], oracle: Oracle, alternatives: int, apart: float) -> None:
    """Check that a prompt's scores and likeliest tokens are transformers' own, within `apart` nats."""
    assert scored is not None
    first, *rest = scored.logprobs
    assert (first.id, first.logprob, first.top) == (ids[0], None, ())
    assert [one.id for one in rest] == ids[1:]
    exact = oracle.logprobs(ids)[:-1]
    own = exact[torch.arange(len(rest)), torch.tensor(ids[1:], dtype=torch.long)]
    torch.testing.assert_close(torch.tensor([one.logprob for one in rest]), own, rtol=0, atol=apart)
    likeliest = exact.topk(alternatives).values
    found = torch.tensor([[value for _, _, value in one.top] for one in rest]).reshape(likeliest.shape)
    torch.testing.assert_close(found, likeliest, rtol=0, atol=apart)
    named = torch.tensor([[token for token, _, _ in one.top] for one in rest], dtype=torch.long).reshape(found.shape)
    torch.testing.assert_close(exact.gather(1, named), found, rtol=0, atol=apart)
