"""Sampling against transformers' own processors: the same penalties, the same tokens kept, the same odds.

A row's token depends on that row alone: not on its neighbours, and not on how it was computed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as theirs

from models.generation import filters
from models.generation.errors import InvalidRequest
from models.generation.sampler_state import SamplerState
from models.generation.sampling import NOT_FINITE, Chosen, adjusted, sample
from models.generation.types import Sampling
from models.generation.validation import check_sampling

VOCABULARY = 30
NO_STOPS: frozenset[int] = frozenset()
GREEDY = Sampling(temperature=0)
MIXED = [
    GREEDY,
    Sampling(seed=1),
    Sampling(temperature=0.7, top_k=5, seed=2),
    Sampling(top_p=0.8, seed=3),
    Sampling(min_p=0.1, seed=4),
    Sampling(temperature=1.5, top_k=20, top_p=0.9, min_p=0.01, repetition_penalty=1.3, logprobs=3, seed=5),
    Sampling(frequency_penalty=0.5, presence_penalty=-0.5, logit_bias={3: 2.0, 8: -100.0}, logprobs=0, seed=6),
    Sampling(top_p=0.999, seed=7),
    Sampling(top_k=700, top_p=0.97, seed=8),
    Sampling(top_k=10_000, seed=9),
]

some_logits = st.lists(st.integers(-24, 24).map(lambda n: n / 4), min_size=VOCABULARY, max_size=VOCABULARY)
tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=20)
filtered = st.builds(
    Sampling,
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    top_k=st.integers(0, VOCABULARY + 5),
    top_p=st.one_of(st.just(1.0), st.floats(0.01, 1)),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two compute threads on busy cores wait for each other far longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[(), (4, 12), (64, 512)], ids=str)
def candidates(request: pytest.FixtureRequest) -> Iterator[None]:
    """With few candidates small vocabularies take every path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filters, "CANDIDATES", request.param)
        yield


def _state(sampling: Sampling, prompt: Sequence[int] = (), text: Sequence[int] = (), width: int = VOCABULARY, **more):
    state = SamplerState(sampling, prompt, width, more.get("stop_ids", NO_STOPS), more.get("min_tokens", 0))
    for token in text:
        state.append(token)
    return state


def _draws(row: Tensor, sampling: Sampling, count: int) -> list[int]:
    """A token for each of `count` seeds."""
    states = [_state(replace(sampling, seed=seed), width=len(row)) for seed in range(count)]
    return [chosen.id for chosen in sample(row.expand(count, -1), states)]


def _probabilities(row: Tensor, sampling: Sampling) -> Tensor:
    """What transformers' filters leave of a row, in float64; which of equal scores top-p keeps is left to its sort."""
    scores = row.double()[None] / sampling.temperature
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    if sampling.top_k:
        scores = theirs.TopKLogitsWarper(sampling.top_k)(nothing, scores)
    if sampling.top_p < 1:
        scores = theirs.TopPLogitsWarper(sampling.top_p)(nothing, scores)
    scores = theirs.MinPLogitsWarper(sampling.min_p)(nothing, scores)
    return torch.softmax(_lowest_ids_first(row, scores[0]), dim=-1)


def _lowest_ids_first(row: Tensor, kept: Tensor) -> Tensor:
    """As many of the scores that equal the lowest kept one as are kept of them, the lowest ids."""
    finite = kept.isfinite()
    equal = (row == row[finite].min()).nonzero()[:, 0]
    count = int(finite[equal].sum())
    moved = kept.clone()
    moved[equal] = -torch.inf
    moved[equal[:count]] = kept[finite].min()
    return moved


def _is_on_an_edge(row: Tensor, sampling: Sampling) -> bool:
    """Whether rounding decides what top-p or min-p keep."""
    off = replace(sampling, top_p=1.0, min_p=0.0)
    below = _probabilities(row, off).sort().values.cumsum(0)
    relative = torch.softmax(row.double() / sampling.temperature, dim=-1)
    relative = relative / relative.max()
    at_top_p = sampling.top_p < 1 and bool(((below - (1 - sampling.top_p)).abs() < 1e-6).any())
    return at_top_p or (sampling.min_p > 0 and bool(((relative - sampling.min_p).abs() < 1e-6).any()))


# Draws


@pytest.mark.usefixtures("candidates")
@settings(max_examples=60)
@given(some_logits, filtered)
def test_draws_are_exactly_from_what_transformers_keeps(logits: list[float], sampling: Sampling) -> None:
    row = torch.tensor(logits)
    assume(not _is_on_an_edge(row, sampling))
    expected = _probabilities(row, sampling)
    drawn = set(_draws(row, sampling, 400))
    assert drawn <= set(expected.nonzero()[:, 0].tolist())
    assert {token for token in range(VOCABULARY) if expected[token] > 0.06} <= drawn


@pytest.mark.usefixtures("candidates")
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(temperature=2.0, top_k=7),
        Sampling(top_p=0.9),
        Sampling(min_p=0.2),
        Sampling(temperature=1.3, top_k=15, top_p=0.95, min_p=0.02),
    ],
)
def test_draws_follow_the_softmax(sampling: Sampling) -> None:
    count = 6_000
    row = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * 1.5
    expected = _probabilities(row, sampling) * count
    seen = Counter(_draws(row, sampling, count))
    assert set(seen) <= set(expected.nonzero()[:, 0].tolist())
    common = [token for token in range(VOCABULARY) if expected[token] >= 5]
    chi_square = sum(float((seen[token] - expected[token]) ** 2 / expected[token]) for token in common)
    freedom = len(common) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5


def test_rare_tokens_are_drawn_as_often_as_the_softmax_says() -> None:
    """Ten tokens hold half of the mass, 32,000 the other half, each as likely as the next."""
    row = torch.zeros(32_010)
    row[-10:] += torch.tensor(3200.0).log()
    drawn = _draws(row, Sampling(), 1000)
    rare = [token for token in drawn if token < 32_000]
    assert 430 < len(rare) < 570
    assert 0.45 < sum(rare) / len(rare) / 32_000 < 0.55


@pytest.mark.usefixtures("candidates")
@pytest.mark.parametrize(
    ("logits", "sampling", "kept"),
    [
        ([1.0, 1, 1, 1], Sampling(top_p=0.5), {0, 1}),
        ([1.0, 1, 1, 1], Sampling(top_p=0.51), {0, 1, 2}),
        ([1.0, 1, 1, 1], Sampling(top_p=1e-9), {0}),
        ([1.0, 1, 1, 0], Sampling(top_k=1), {0, 1, 2}),
        ([1.0, 0, 1, 1], Sampling(top_k=2, top_p=0.6), {0, 2}),
        ([0.0, 0, 9, 0], Sampling(min_p=1.0), {2}),
        ([-torch.inf, 0, -torch.inf, 0], Sampling(top_k=3, top_p=0.9), {1, 3}),
        ([-torch.inf, -1, -torch.inf, -1], Sampling(), {1, 3}),
        ([-0.0, 0.0, -1.0, -1.0], Sampling(top_k=1), {0, 1}),
    ],
)
def test_ties_are_kept_as_transformers_keeps_them(logits: list[float], sampling: Sampling, kept: set[int]) -> None:
    row = torch.tensor(logits + [-50.0] * 20)
    assert set(_probabilities(row, sampling).nonzero()[:, 0].tolist()) & set(range(4)) == kept
    assert set(_draws(row, sampling, 200)) == kept


def test_a_greedy_tie_goes_to_the_lowest_id() -> None:
    rows = torch.zeros(2, 1000)
    rows[0, [999, 17, 500]] = 3.0
    assert [chosen.id for chosen in sample(rows, [_state(GREEDY, width=1000)] * 2)] == [17, 0]


@pytest.mark.parametrize("temperature", [1e-5, 1e-4, 1e-320])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    row = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    assert set(_draws(row, Sampling(temperature=temperature), 20)) == {int(row.argmax())}


# What it depends on


@pytest.mark.parametrize("scale", [0.3, 2.0, 8.0])
def test_a_token_does_not_depend_on_the_code_path(scale: float) -> None:
    rows = torch.randn(40, 2000, generator=torch.Generator().manual_seed(2)) * scale
    rows[::2] = rows[::2].bfloat16().float()  # many ties
    states = [_state(replace(MIXED[i % 10], seed=i), text=[3, 4, 4], width=2000) for i in range(40)]
    found = []
    for sizes in ((), (64, 512), (701, 1999), (20, 100, 1000)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(filters, "CANDIDATES", sizes)
            found.append(sample(rows, states))
    assert all(chosen == found[0] for chosen in found)


def _logits_after(tokens: Sequence[int], width: int) -> Tensor:
    """A model: its logits follow from the last two tokens."""
    draw = torch.Generator().manual_seed(hash(tuple(tokens[-2:])))
    return torch.randn(width, generator=draw) * 3


def _complete(sampling: Sampling, steps: int, rebuilt_after: int | None = None) -> list[int]:
    prompt, text = [1, 2, 3, 3], []
    state = _state(sampling, prompt)
    for step in range(steps):
        if step == rebuilt_after:
            state = _state(sampling, prompt, text)
        (chosen,) = sample(_logits_after([*prompt, *text], VOCABULARY)[None], [state])
        text.append(chosen.id)
        state.append(chosen.id)
    return text


def test_a_text_is_the_same_alone_in_a_batch_and_rebuilt() -> None:
    prompt, steps = [1, 2, 3, 3], 12
    alone = [_complete(sampling, steps) for sampling in MIXED]
    assert [_complete(sampling, steps, rebuilt_after=5) for sampling in MIXED] == alone
    texts: list[list[int]] = [[] for _ in MIXED]
    states = [_state(sampling, prompt) for sampling in MIXED]
    for step in range(steps):
        order = sorted(range(len(MIXED)), key=lambda row: (row * 7 + step * 3) % 11)
        rows = torch.stack([_logits_after([*prompt, *texts[row]], VOCABULARY) for row in order])
        for row, chosen in zip(order, sample(rows, [states[row] for row in order]), strict=True):
            texts[row].append(chosen.id)
            states[row].append(chosen.id)
    assert texts == alone
    assert [state.position for state in states] == [steps] * len(MIXED)


def test_seeds_and_positions_draw_independently() -> None:
    row = torch.zeros(1, 1000)
    assert len(set(_draws(row[0], Sampling(), 100))) > 80
    state = _state(Sampling(seed=2**64 - 1), width=1000)
    texts = []
    for _ in range(100):
        texts.append(sample(row, [state])[0].id)
        state.append(texts[-1])
    assert len(set(texts)) > 80


@pytest.mark.parametrize(
    "broken",
    [torch.full((VOCABULARY,), torch.nan), torch.full((VOCABULARY,), -torch.inf), torch.zeros(VOCABULARY)],
    ids=["all NaN", "all minus infinity", "one of them"],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_row_without_finite_scores_fails_alone(broken: Tensor, value: float) -> None:
    rows = torch.randn(2 * len(MIXED), VOCABULARY, generator=torch.Generator().manual_seed(3))
    states = [_state(sampling, [1, 2], [3], stop_ids=frozenset({5}), min_tokens=3) for sampling in MIXED * 2]
    whole = sample(rows, states)
    rows[1::2] = broken
    if not broken.isinf().any():
        rows[1::2, 5] = value  # the id of the masked end, too
    found = sample(rows, states)
    assert found[::2] == whole[::2]
    assert found[1::2] == [Chosen(NOT_FINITE)] * len(MIXED)


def test_logits_and_states_are_not_modified() -> None:
    rows = torch.randn(len(MIXED), VOCABULARY, generator=torch.Generator().manual_seed(4))
    before = rows.clone()
    states = [_state(sampling, [1, 2], [3], stop_ids=frozenset({5}), min_tokens=3) for sampling in MIXED]
    first = sample(rows, states)
    assert torch.equal(rows, before)
    assert sample(rows, states) == first


# What changes the logits


@given(some_logits, tokens, tokens, st.sampled_from([0.5, 0.8, 1.0, 1.1, 2.0]), st.integers(0, 4))
def test_repetition_and_early_ends_are_as_in_transformers(
    logits: list[float], prompt: list[int], text: list[int], penalty: float, min_tokens: int
) -> None:
    row, ids = torch.tensor([logits]), torch.tensor([[*prompt, *text]], dtype=torch.int64)
    stop_ids = frozenset({2, 9, VOCABULARY + 3})
    state = _state(Sampling(repetition_penalty=penalty), prompt, text, stop_ids=stop_ids, min_tokens=min_tokens)
    expected = theirs.MinNewTokensLengthLogitsProcessor(len(prompt), min_tokens, [2, 9])(ids, row)
    expected = theirs.RepetitionPenaltyLogitsProcessor(penalty)(ids, expected)
    assert torch.equal(adjusted(row, [state]), expected)


@given(some_logits, st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100, width=32), min_size=1))
def test_biases_are_as_in_transformers(logits: list[float], biases: dict[int, float]) -> None:
    row = torch.tensor([logits])
    processor = theirs.SequenceBiasLogitsProcessor([[[token], bias] for token, bias in biases.items()])
    expected = processor(torch.zeros(1, 1, dtype=torch.int64), row)
    assert torch.equal(adjusted(row, [_state(Sampling(logit_bias=biases))]), expected)


@given(some_logits, tokens, tokens, st.floats(-2, 2, width=32), st.floats(-2, 2, width=32))
def test_presence_and_frequency_count_only_the_completion(
    logits: list[float], prompt: list[int], text: list[int], presence: float, frequency: float
) -> None:
    row = torch.tensor([logits])
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=1.5)
    expected = theirs.RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([[*prompt, *text]], dtype=torch.int64), row)
    counts = torch.bincount(torch.tensor(text, dtype=torch.int64), minlength=VOCABULARY)
    expected = expected - presence * (counts > 0) - frequency * counts
    assert torch.allclose(adjusted(row, [_state(sampling, prompt, text)]), expected, atol=1e-5)


def test_each_row_has_its_own_penalties() -> None:
    rows = torch.randn(len(MIXED), VOCABULARY, generator=torch.Generator().manual_seed(5))
    states = [_state(sampling, [1, 2], [i % 7, 3]) for i, sampling in enumerate(MIXED)]
    alone = [adjusted(row[None], [state]) for row, state in zip(rows, states, strict=True)]
    assert torch.equal(adjusted(rows, states), torch.cat(alone))


def test_rows_without_adjustments_are_not_copied() -> None:
    rows = torch.zeros(1, VOCABULARY)
    assert adjusted(rows, [_state(GREEDY, [1, 2], [3], stop_ids=frozenset({4}), min_tokens=1)]) is rows


# Log-probabilities


@pytest.mark.parametrize("count", [0, 1, 5, VOCABULARY])
def test_logprobs_are_the_models_own(count: int) -> None:
    rows = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(6))
    rows[1, 4:] = -torch.inf
    sampling = Sampling(0.1, top_k=3, repetition_penalty=2.0, logit_bias={1: 5.0}, logprobs=count)
    found = sample(rows, [_state(sampling, [1, 2]), _state(replace(sampling, seed=4)), _state(GREEDY)])
    expected = torch.log_softmax(rows, dim=-1)
    for row, chosen in enumerate(found[:2]):
        assert chosen.logprob == float(expected[row, chosen.id])
        likeliest = expected[row][expected[row].isfinite()].sort(descending=True).values[:count]
        assert [logprob for _, logprob in chosen.top] == likeliest.tolist()
        assert all(float(expected[row, token]) == logprob for token, logprob in chosen.top)
    assert (found[2].logprob, found[2].top) == (None, ())


# What is refused


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in (torch.nan, -1.0, 1e9)),
        *(("top_p", value) for value in (0.0, -0.1, 1.1, torch.nan)),
        ("top_k", -1),
        *(("min_p", value) for value in (-0.1, 1.1)),
        *(("repetition_penalty", value) for value in (0.0, -1.0, torch.inf)),
        *(("presence_penalty", value) for value in (-2.1, torch.nan)),
        ("frequency_penalty", 2.1),
        *(("seed", value) for value in (-1, 2**64)),
        *(("logprobs", value) for value in (-1, 21)),
        *(("logit_bias", value) for value in ({VOCABULARY: 1.0}, {-1: 1.0}, {0: 101.0}, {0: torch.nan})),
    ],
)
def test_invalid_sampling_is_refused_by_field(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_sampling(Sampling(**{field: value}), VOCABULARY)
    assert refused.value.field == field


@pytest.mark.parametrize("sampling", [*MIXED, Sampling(top_p=1e-9, seed=2**64 - 1), Sampling(temperature=2)])
def test_valid_sampling_passes(sampling: Sampling) -> None:
    check_sampling(sampling, VOCABULARY)


def test_no_rows_give_no_tokens() -> None:
    assert sample(torch.zeros(0, VOCABULARY), []) == []
