"""The engine besides its tokens: refusals, one end per request, and failures that stay with their request."""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import generation_models
import pytest
import torch
from generation_engines import GREEDY, Outcomes, greedy, new_engine, read, run
from transformers import AutoConfig, AutoModelForCausalLM

from models.errors import DeviceFailed, ModelUnavailable, OutOfDeviceMemory
from models.generation import sampling
from models.generation.causal_lm import CausalLM
from models.generation.engine import Engine
from models.generation.errors import DuplicateRequest, EngineFull, InvalidRequest, NonFiniteLogits, PromptTooLong
from models.generation.output import TextOutput
from models.generation.sampling import MIN_LOGPROB, logprobs
from models.generation.types import Chat, EngineLimits, Fill, Message, Plain, Request, Sampling

POISON = 20


@cache
def llama() -> CausalLM:
    return read(generation_models.llama())


def ids(text: str) -> list[int]:
    return llama().tokenizer.encode(text)


@contextmanager
def poisoned(corrupt: Any) -> Iterator[None]:
    """The embedding of the POISON token is changed by `corrupt`."""

    def hook(_module: torch.nn.Module, arguments: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        where = arguments[0] == POISON
        return corrupt(output, where) if bool(where.any()) else output

    handle = llama().network.get_input_embeddings().register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _raise(error: Exception) -> Any:
    def corrupt(_output: torch.Tensor, _where: torch.Tensor) -> torch.Tensor:
        raise error

    return corrupt


def _nan(output: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    return output.masked_fill(where[..., None], math.nan)


HEALTHY = [[30, 31, 32, 33], [40] * 50, [50, 51]]


@pytest.mark.parametrize(
    ("corrupt", "kind"),
    [
        (_raise(ValueError("boom")), ValueError),
        (_raise(torch.OutOfMemoryError("no room")), OutOfDeviceMemory),
        (_nan, NonFiniteLogits),
    ],
)
def test_a_failing_request_fails_alone(corrupt: Any, kind: type[Exception]) -> None:
    requests = [greedy(f"h{place}", prompt, 20) for place, prompt in enumerate(HEALTHY)]
    alone = run(new_engine(llama()), *requests)
    with poisoned(corrupt):
        outcomes = run(
            new_engine(llama(), chunk_tokens=16), requests[0], greedy("bad", [60, POISON, 61], 20), *requests[1:]
        )

    assert outcomes["bad"].finished is not None
    assert outcomes["bad"].finished.reason == "error"
    assert isinstance(outcomes["bad"].finished.error, kind)
    for request in requests:
        assert outcomes[request.id] == alone[request.id]


def test_a_failing_detokenisation_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    push = TextOutput.push

    def broken(output: TextOutput, token: int, logprob: Any) -> Any:
        if output._request == "bad":
            raise ValueError("boom")
        return push(output, token, logprob)

    good = greedy("good", HEALTHY[0], 9)
    alone = run(new_engine(llama()), good)
    monkeypatch.setattr(TextOutput, "push", broken)

    outcomes = run(new_engine(llama()), greedy("bad", HEALTHY[1], 9), good)

    assert isinstance(outcomes["bad"].finished.error, ValueError)
    assert outcomes["good"] == alone["good"]


def test_failing_sampling_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = sampling.sample

    def broken(rows: torch.Tensor, states: Any) -> Any:
        if any(state.sampling.seed == 13 for state in states):
            raise ValueError("boom")
        return sample(rows, states)

    good = greedy("good", HEALTHY[0], 9)
    alone = run(new_engine(llama()), good)
    monkeypatch.setattr(sampling, "sample", broken)

    outcomes = run(new_engine(llama()), Request("bad", HEALTHY[1], 9, sampling=Sampling(seed=13)), good)

    assert isinstance(outcomes["bad"].finished.error, ValueError)
    assert outcomes["good"] == alone["good"]


SCORED = {"sampling": Sampling(temperature=0, logprobs=0), "prompt_logprobs": True}


@pytest.mark.parametrize("max_tokens", [0, 4])
def test_a_prompt_with_nan_scores_fails_alone(max_tokens: int) -> None:
    others = [greedy("plain", HEALTHY[0], 9), greedy("scored", HEALTHY[1], 9, **SCORED)]
    alone = run(new_engine(llama()), *others)
    with poisoned(_nan):
        outcomes = run(
            new_engine(llama(), chunk_tokens=16),
            others[0],
            greedy("bad", [60, POISON, 61], max_tokens, **SCORED),
            others[1],
        )

    assert isinstance(outcomes["bad"].finished.error, NonFiniteLogits)
    assert [outcomes[other.id].text for other in others] == [alone[other.id].text for other in others]
    assert (outcomes["bad"].scored, outcomes["plain"].scored) == (None, None)
    found, expected = (made["scored"].scored.logprobs for made in (outcomes, alone))
    assert [one.id for one in found] == HEALTHY[1]
    assert [one.logprob for one in found[1:]] == pytest.approx([one.logprob for one in expected[1:]], abs=1e-4)


def test_a_cancelled_scored_prompt_keeps_no_scores() -> None:
    engine = new_engine(llama(), chunk_tokens=8)
    request = greedy("a", [30] * 100, 0, **SCORED)
    engine.add(request)
    engine.step()
    sequence = engine._sequences["a"]
    assert 1 < len(sequence.scores) < 100

    engine.abort("a", "cancelled")

    outcome = run(engine)["a"]
    assert (outcome.scored, outcome.finished.usage.completion) == (None, 0)
    assert not sequence.scores
    assert engine.load.kv_used_bytes == 0


@pytest.mark.parametrize("length", [1, 2, 40])
def test_max_tokens_zero_ends_at_once_and_leaves_the_prompt_in_the_cache(length: int) -> None:
    engine = new_engine(llama())
    prompt = list(range(30, 30 + length))

    outcome, scored = (
        run(engine, greedy(name, prompt, 0, **fields))[name] for name, fields in (("a", {}), ("b", SCORED))
    )

    for one in (outcome, scored):
        assert one.finished is not None
        assert (one.finished.reason, one.finished.usage.prompt, one.finished.usage.cached) == ("length", length, 0)
        assert (one.text, one.finished.usage.completion) == ("", 0)
    assert outcome.scored is None
    assert [logprob.id for logprob in scored.scored.logprobs] == prompt
    used = run(engine, greedy("c", prompt, 1))["c"].finished.usage
    assert used.cached == (39 if length == 40 else 0)


def test_a_token_of_probability_zero_has_a_finite_logprob() -> None:
    """JSON has no infinity."""
    ((value, top),) = logprobs(torch.tensor([[0.0, -math.inf, 1.0]]), [1], [3])
    assert value == MIN_LOGPROB
    assert [token for token, _ in top] == [2, 0]


def test_a_failed_request_is_not_reused_as_a_prefix() -> None:
    engine = new_engine(llama())
    prompt = [60, POISON, *range(30, 130)]
    with poisoned(_nan):
        assert run(engine, greedy("a", prompt, 3))["a"].finished.reason == "error"

    assert run(engine, greedy("a", prompt, 3))["a"].finished.usage.cached == 0


def test_a_failing_request_fails_alone_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device's scores do not lie where an empty tensor lies by default; `meta` stands in for one."""
    engine = new_engine(llama())

    def runs(chunks: Any) -> torch.Tensor:
        if any(chunk.sequence.request.id == "bad" for chunk in chunks):
            raise ValueError("boom")
        return torch.empty(len(chunks), llama().facts.vocabulary, device="meta")

    monkeypatch.setattr(engine._runner, "run", runs)
    monkeypatch.setattr(sampling, "sample", lambda rows, states: [sampling.Chosen(30)] * len(rows))

    outcomes = run(engine, greedy("bad", [30], 2), greedy("good", [31], 2))

    assert [outcomes[name].finished.reason for name in ("bad", "good")] == ["error", "length"]


def test_a_device_that_fails_for_good_fails_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a kernel shows where the host first waits for it, as in the sampler."""

    def broken(*_: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    engine = new_engine(llama())
    engine.facts = replace(engine.facts, device="cuda")
    monkeypatch.setattr(sampling, "sample", broken)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)

    with pytest.raises(DeviceFailed):
        run(engine, greedy("a", HEALTHY[0], 2), greedy("b", HEALTHY[1], 2))


def test_a_failing_search_fails_alone() -> None:
    with poisoned(_nan):
        outcomes = run(
            new_engine(llama()), greedy("bad", [60, POISON], 9, num_beams=3), greedy("good", HEALTHY[0], 9, num_beams=3)
        )

    assert isinstance(outcomes["bad"].finished.error, NonFiniteLogits)
    assert outcomes["good"].finished.reason == "length"


def test_a_cancelled_search_leaves_nothing_behind() -> None:
    engine = new_engine(llama())
    engine.add(greedy("a", HEALTHY[0], 50, num_beams=4))
    engine.add(greedy("waits", HEALTHY[1], 50, num_beams=4))
    engine.step()
    engine.step()

    engine.abort("a", "cancelled")
    engine.abort("waits", "timeout")
    outcomes = Outcomes()
    outcomes.take(engine.step())

    assert [outcomes[name].finished.reason for name in ("a", "waits")] == ["cancelled", "timeout"]
    assert engine.is_idle
    assert (engine.load.running, engine.load.waiting, engine.load.kv_used_bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0, "num_beams": 2}, "max_tokens"),
        ({"min_tokens": 6}, "min_tokens"),
        ({"stop": ("a", "")}, "stop"),
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": 9}, "num_beams"),
        ({"num_beams": 8}, "num_beams"),  # more than run at once
        ({"num_beams": 2, "length_penalty": math.nan}, "length_penalty"),
        ({"num_beams": 2, "length_penalty": math.inf}, "length_penalty"),
        ({"num_beams": 2, "length_penalty": -11.0}, "length_penalty"),
        ({"num_beams": 2, "sampling": Sampling(repetition_penalty=1.5)}, "repetition_penalty"),
        ({"num_beams": 2, "sampling": Sampling(logit_bias={3: 1.0})}, "logit_bias"),
        ({"sampling": Sampling(temperature=math.nan)}, "temperature"),
        ({"sampling": Sampling(temperature=-1)}, "temperature"),
        ({"sampling": Sampling(temperature=1e9)}, "temperature"),
        ({"sampling": Sampling(top_p=0)}, "top_p"),
        ({"sampling": Sampling(top_k=-1)}, "top_k"),
        ({"sampling": Sampling(logit_bias={10**6: 1.0})}, "logit_bias"),
        ({"sampling": Sampling(seed=2**64)}, "seed"),
    ],
)
def test_invalid_requests_are_refused_by_field(fields: dict[str, Any], field: str) -> None:
    engine = new_engine(llama(), max_running=4)
    request = Request(**{"id": "a", "prompt": [30], "max_tokens": 5, **fields})

    with pytest.raises(InvalidRequest) as refused:
        engine.add(request)

    assert refused.value.field == field
    assert engine.is_idle


def test_a_top_k_above_the_vocabulary_keeps_all() -> None:
    engine = new_engine(llama())
    every = run(engine, Request("a", [30], 9, sampling=Sampling(seed=3)))
    assert run(engine, Request("a", [30], 9, sampling=Sampling(seed=3, top_k=10**9))) == every


def test_a_prompt_that_passes_the_context_or_the_cache_is_refused() -> None:
    context = llama().facts.max_tokens
    with pytest.raises(PromptTooLong, match=f"{context} of the model's context"):
        new_engine(llama(), cache_tokens=2 * context).add(greedy("a", [30] * context, 1))
    engine = new_engine(llama(), cache_tokens=64)
    with pytest.raises(PromptTooLong, match="64 of its cache"):
        engine.add(greedy("a", [30] * 60, 5))
    with pytest.raises(PromptTooLong, match="32 of its cache"):
        engine.add(greedy("a", [30] * 30, 5, num_beams=2))

    assert run(engine, greedy("a", [30] * 60, 4))["a"].finished.reason == "length"


def test_the_queue_is_bounded_by_count_and_by_tokens() -> None:
    engine = Engine(llama(), EngineLimits(waiting=2, waiting_tokens=100, kv_bytes=1 << 20))
    engine.add(greedy("a", [30] * 40, 1))
    with pytest.raises(EngineFull, match="100 tokens"):
        engine.add(greedy("b", [30] * 61, 1))
    engine.add(greedy("b", [30] * 60, 1))
    with pytest.raises(EngineFull, match="2 requests"):
        engine.add(greedy("c", [30], 1))

    outcomes = Outcomes()
    while not engine.is_idle:
        outcomes.take(engine.step())
    assert sorted(outcomes) == ["a", "b"]


def test_an_id_can_be_used_again_only_after_its_end() -> None:
    engine = new_engine(llama())
    engine.add(greedy("a", [30], 3))
    with pytest.raises(DuplicateRequest):
        engine.add(greedy("a", [31], 3))

    assert run(engine)["a"].finished.usage.prompt == 1
    assert run(engine, greedy("a", [31, 32], 3))["a"].finished.usage.prompt == 2


def test_aborting_what_has_ended_does_nothing() -> None:
    engine = new_engine(llama())
    run(engine, greedy("a", [30], 3))
    engine.abort("a", "cancelled")
    assert engine.is_idle


def test_a_stop_string_ends_the_text_before_it() -> None:
    engine = new_engine(llama())
    text = run(engine, greedy("a", [30, 31], 40))["a"].text
    stop = text[20:23]
    at = text.find(stop)

    outcome = run(engine, greedy("a", [30, 31], 40, stop=(stop, "never")))["a"]

    assert outcome.text == text[:at]
    assert outcome.finished is not None
    assert (outcome.finished.reason, outcome.finished.stop_reason) == ("stop", stop)


def test_min_tokens_keeps_a_text_from_ending() -> None:
    engine = new_engine(llama())
    every = frozenset(range(llama().facts.vocabulary)) - {77}

    outcome = run(engine, greedy("a", [30], 9, min_tokens=5, stop_ids=every))["a"]

    assert outcome.finished is not None
    assert outcome.finished.usage.completion == 6
    assert sum(piece.tokens for piece in outcome.pieces) == 5


def test_usage_reports_cached_tokens() -> None:
    engine = new_engine(llama())
    prompt = list(range(30, 130))
    run(engine, greedy("a", prompt, 3))

    usage = run(engine, greedy("b", prompt, 3))["b"].finished.usage

    assert (usage.prompt, usage.cached, usage.completion) == (100, 99, 3)


def test_unsupported_prompt_forms_are_refused() -> None:
    engine = new_engine(llama())
    assert not engine.facts.chat
    assert not engine.facts.fill
    with pytest.raises(InvalidRequest, match="messages"):
        engine.prompt_tokens(Chat((Message("user", "hello"),)))
    with pytest.raises(InvalidRequest, match="prefix"):
        engine.prompt_tokens(Fill("a", "b"))
    with pytest.raises(InvalidRequest, match="prompt"):
        engine.prompt_tokens(Plain(""))


def test_load_reports_the_cache_in_use() -> None:
    engine = new_engine(llama(), cache_tokens=640)
    held = engine._cache._arena.untyped_storage().nbytes()
    assert engine.facts.kv_bytes == engine.load.kv_bytes == held

    engine.add(greedy("a", [30] * 100, 20))
    engine.step()
    assert engine.load.kv_used_bytes == 128 * engine._shape.token_bytes


def test_many_requests_leave_nothing_behind() -> None:
    engine = new_engine(llama(), cache_tokens=320)
    for number in range(200):
        engine.add(Request(str(number), [30 + number % 50] * (1 + number % 70), 2, sampling=GREEDY))
        engine.step()
    run(engine)

    load = engine.load
    assert (load.running, load.waiting, load.kv_used_bytes) == (0, 0, 0)
    assert len(engine._scheduler._prefixes._kept) <= 10
    assert not engine._sequences
    assert set(engine._scheduler._prefixes._holders.values()) <= set(engine._scheduler._prefixes._kept)


@pytest.mark.parametrize("kind", ["diffllama", "nemotron"])
def test_an_architecture_that_the_engine_does_not_reproduce_is_refused(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / kind
    shutil.copytree(generation_models.llama(), folder, ignore=shutil.ignore_patterns("model*"))
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, vocab_size=llama().facts.vocabulary, num_key_value_heads=2, **sizes)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)

    with pytest.raises(ModelUnavailable, match=f"{kind}, is not served.*; choose another model") as refused:
        new_engine(read(folder))
    assert "TypeError" not in str(refused.value)
    assert "cached_attention" not in str(refused.value)


def test_a_cache_too_small_for_any_text_is_refused() -> None:
    with pytest.raises(ModelUnavailable, match="kv_gb"):
        new_engine(llama(), cache_tokens=32)
