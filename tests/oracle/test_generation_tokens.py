"""The engine against transformers' `generate`: the same greedy tokens in any batch, chunk size and order.

All in fp32, where the scores of these models lie further apart than what the order of a sum changes.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import generation_models
import pytest
import torch
from generation_engines import GREEDY, Oracle, Outcomes, assert_scored, greedy, new_engine, read, run

from models.generation import engine as engine_module
from models.generation import scheduler
from models.generation.causal_lm import CausalLM
from models.generation.engine import Engine
from models.generation.types import Fill, Plain, Request, Sampling

MODELS = sorted(generation_models.ALL)


@pytest.fixture(autouse=True)
def _one_kind_of_threads() -> Iterator[None]:
    with torch.inference_mode():
        yield


@cache
def loaded(name: str) -> CausalLM:
    return read(generation_models.ALL[name]())


@cache
def oracle(name: str) -> Oracle:
    return Oracle(generation_models.ALL[name](), loaded(name))


@cache
def prompts(name: str) -> list[list[int]]:
    """Prompts of many lengths, some of which begin alike for more than a block."""
    rng, last = random.Random(5), loaded(name).tokenizer.vocabulary - 1
    shared = [rng.randint(10, last) for _ in range(80)]
    return [
        [*shared[: rng.choice((0, 40, 80))], *(rng.randint(10, last) for _ in range(rng.choice((1, 2, 31, 90))))]
        for _ in range(14)
    ]


@cache
def expected(name: str, prompt: int, max_tokens: int) -> str:
    return oracle(name).text(prompts(name)[prompt], max_tokens)


def drive(engine: Engine, requests: list[Request], seed: int) -> Outcomes:
    """Run the requests in random order, adding some while others run."""
    rng, waiting, outcomes = random.Random(seed), list(requests), Outcomes()
    rng.shuffle(waiting)
    while waiting or not engine.is_idle:
        while waiting and rng.random() < 0.6:
            engine.add(waiting.pop())
        outcomes.take(engine.step())
    return outcomes


def mixed(name: str) -> tuple[list[Request], list[str]]:
    lengths = [(1, 7, 40)[place % 3] for place in range(len(prompts(name)))]
    requests = [greedy(f"r{place}", prompts(name)[place], made) for place, made in enumerate(lengths)]
    return requests, [expected(name, place, made) for place, made in enumerate(lengths)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("max_running", "chunk_tokens"), [(16, 128), (5, 16), (2, 7)])
def test_greedy_text_equals_generate(name: str, max_running: int, chunk_tokens: int) -> None:
    engine = new_engine(loaded(name), max_running=max_running, chunk_tokens=chunk_tokens)
    requests, texts = mixed(name)

    outcomes = drive(engine, requests, seed=max_running)

    assert [outcomes[request.id].text for request in requests] == texts
    assert any(outcome.finished.usage.cached for outcome in outcomes.values())
    assert engine.load.kv_used_bytes == 0


OTHERS: dict[str, dict[str, Any]] = {
    "ministral": {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 16, "sliding_window": 24},
    "phi3": {"sliding_window": 24, "pad_token_id": 0},
    "starcoder2": {"sliding_window": 24},
    "cohere2": {"sliding_window": 24, "sliding_window_pattern": 2},
    "olmo3": {"sliding_window": 24},
    "gemma3": {
        "text_config": {
            "vocab_size": 643,
            "hidden_size": 64,
            "intermediate_size": 128,
            "head_dim": 16,
            "sliding_window": 24,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        "vision_config": {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    },
    "exaone4": {"sliding_window": 24, "sliding_window_pattern": 2},
    "smollm3": {"pad_token_id": 0},
    "qwen3": {"head_dim": 16, "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 24},
    "phi": {"partial_rotary_factor": 0.5},
    "glm": {"partial_rotary_factor": 0.5, "head_dim": 16, "pad_token_id": 0},
    "glm4": {"partial_rotary_factor": 0.5, "head_dim": 16, "pad_token_id": 0},
    "gpt_neox": {"rotary_pct": 0.25, "num_key_value_heads": 4},
}
"""Kinds that differ from those above by windows, partly turned positions or norms: type, and what to say of it."""


@pytest.mark.parametrize("kind", OTHERS)
def test_greedy_text_of_other_architectures_equals_generate(kind: str) -> None:
    folder = generation_models.base(kind, **OTHERS[kind])
    model = read(folder)
    reference, some = Oracle(folder, model), [prompts("llama")[place][:120] for place in (0, 2, 5)]

    outcomes = run(new_engine(model, chunk_tokens=16), *(greedy(f"r{n}", ids, 30) for n, ids in enumerate(some)))

    texts = [outcomes[f"r{n}"].text for n in range(len(some))]
    assert texts == [reference.text(ids, 30) for ids in some]
    assert len({*texts}) == len(texts)


@pytest.mark.parametrize("name", MODELS)
def test_preemption_changes_no_token(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "HEADROOM", 1)
    engine = new_engine(loaded(name), cache_tokens=288, max_running=6, chunk_tokens=32)
    requests, texts = mixed(name)

    outcomes = drive(engine, requests, seed=1)

    assert engine.load.preempted > 0
    assert [outcomes[request.id].text for request in requests] == texts


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fields", [{"num_beams": 2}, {"num_beams": 4, "length_penalty": 2.0}])
def test_beams_equal_generate(name: str, fields: dict[str, float]) -> None:
    engine = new_engine(loaded(name), max_running=8)
    stop_ids = frozenset({11, 12, 13})
    some = prompts(name)[:5]
    requests = [
        Request(f"b{place}", prompt, 12, stop_ids=stop_ids, sampling=GREEDY, **fields)
        for place, prompt in enumerate(some)
    ]
    others, texts = mixed(name)

    outcomes = drive(engine, [*requests, *others], seed=2)

    assert [outcomes[request.id].text for request in requests] == [
        oracle(name).text(prompt, 12, stop_ids, **fields) for prompt in some
    ]
    assert [outcomes[other.id].text for other in others] == texts


@pytest.mark.parametrize("name", MODELS)
def test_a_stop_id_ends_the_text_as_generates_does(name: str) -> None:
    prompt = prompts(name)[0]
    made = oracle(name).ids(prompt, 30)
    stop = made[12]

    outcome = run(new_engine(loaded(name)), greedy("a", prompt, 30, stop_ids=frozenset({stop})))["a"]

    assert outcome.text == oracle(name).text(prompt, 30, frozenset({stop}))
    assert outcome.finished is not None
    assert (outcome.finished.reason, outcome.finished.stop_reason) == ("stop", stop)
    assert outcome.finished.usage.completion == made.index(stop) + 1


def test_a_cancelled_request_changes_no_neighbour() -> None:
    engine = new_engine(loaded("llama"), max_running=16)
    requests, texts = mixed("llama")
    outcomes = Outcomes()
    for request in [*requests, *(replace(request, id=f"gone-{request.id}", max_tokens=200) for request in requests)]:
        engine.add(request)
    for place in range(len(requests)):
        outcomes.take(engine.step())
        engine.abort(f"gone-r{place}", "cancelled")
    while not engine.is_idle:
        outcomes.take(engine.step())

    assert [outcomes[request.id].text for request in requests] == texts
    reasons = {outcomes[f"gone-{request.id}"].finished.reason for request in requests}
    assert reasons == {"cancelled"}


def test_a_seed_gives_the_same_text_alone_in_a_batch_and_after_preemption(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("starcoder")
    request = Request("a", prompts("starcoder")[3], 60, sampling=Sampling(temperature=0.9, top_p=0.95, seed=2**63 + 11))
    alone = run(new_engine(model), request)["a"].text
    crowd = [replace(request, id=f"x{seed}", sampling=Sampling(seed=seed)) for seed in range(6)]

    monkeypatch.setattr(scheduler, "HEADROOM", 1)
    engine = new_engine(model, cache_tokens=384, max_running=7, chunk_tokens=16)
    outcomes = drive(engine, [*crowd, request], seed=4)

    assert engine.load.preempted > 0
    assert outcomes["a"].text == alone
    assert len({outcome.text for outcome in outcomes.values()}) == len(outcomes)


@pytest.mark.parametrize("name", ["codellama", "starcoder"])
def test_a_gap_is_filled_as_generate_fills_it(name: str) -> None:
    engine = new_engine(loaded(name))
    tokens = engine.prompt_tokens(Fill("def add(a, b):\n", "\n    return c\n"))

    outcome = run(engine, greedy("a", list(tokens.ids), 20, stop_ids=tokens.stop_ids))["a"]

    assert outcome.text == oracle(name).text(list(tokens.ids), 20, tokens.stop_ids)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_log_probabilities_are_the_models_own(name: str) -> None:
    """Some of the tokens lie behind the windows."""
    engine = new_engine(loaded(name))
    tokens = engine.prompt_tokens(Plain("def add(a, b):"))
    sampling = Sampling(temperature=0, logprobs=3)

    outcome = run(engine, Request("a", list(tokens.ids), 8, sampling=sampling))["a"]

    logprobs = [logprob for piece in outcome.pieces for logprob in piece.logprobs]
    ids = oracle(name).ids(list(tokens.ids), 8)
    assert [logprob.id for logprob in logprobs] == ids
    exact = oracle(name).logprobs([*tokens.ids, *ids])[len(tokens.ids) - 1 : -1]
    for logprob, row in zip(logprobs, exact, strict=True):
        assert logprob.logprob == pytest.approx(float(row.max()), abs=1e-4)
        assert [token for token, _, _ in logprob.top] == row.topk(3).indices.tolist()


APART = 1e-4
"""Tolerance in nats, for the order of sums."""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("cache_tokens", "chunk_tokens"), [(4096, 128), (288, 16)])
def test_prompt_logprobs_are_the_models_own(
    name: str, cache_tokens: int, chunk_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside cached prompts with the same prefix, in chunks, with preemption, and with completions."""
    monkeypatch.setattr(scheduler, "HEADROOM", 1)
    monkeypatch.setattr(engine_module, "SCORED_BYTES", 24 * 4 * loaded(name).facts.vocabulary)
    engine = new_engine(loaded(name), cache_tokens=cache_tokens, max_running=6, chunk_tokens=chunk_tokens)
    plain, texts = mixed(name)
    sampling = Sampling(temperature=0, logprobs=3)
    scored = [
        replace(one, id=f"s{place}", max_tokens=one.max_tokens * (place % 2), sampling=sampling, prompt_logprobs=True)
        for place, one in enumerate(plain)
    ]

    outcomes = drive(engine, [*plain, *scored], seed=3)

    assert [outcomes[request.id].text for request in plain] == texts
    assert (engine.load.preempted > 0) == (cache_tokens == 288)
    for place, request in enumerate(scored):
        outcome = outcomes[request.id]
        assert_scored(outcome.scored, list(request.prompt), oracle(name), 3, APART)
        assert outcome.finished is not None
        assert (outcome.finished.reason, outcome.finished.usage.cached) == ("length", 0)
        assert outcome.finished.usage.completion == request.max_tokens
        assert outcome.text == (texts[place] if request.max_tokens else "")
