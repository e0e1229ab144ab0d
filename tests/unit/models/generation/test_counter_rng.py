"""Counter-based random numbers: uniform, uncorrelated, a function of seed, position and token id alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.generation import counter_rng

WORD = 2**64
seeds = st.integers(0, WORD - 1)
positions = st.integers(0, 100_000)


def _uniform(keys: list[int], ids: range | list[int]) -> torch.Tensor:
    return counter_rng.uniform(torch.tensor(keys)[:, None], torch.tensor(list(ids))[None])


def _excess(counts: torch.Tensor, expected: float) -> float:
    """How many standard deviations chi-square lies above its mean, for bins that are equally likely."""
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.numel() - 1
    return (chi_square - freedom) / (2 * freedom) ** 0.5


def _split_mix(seed: int, position: int, token: int) -> int:
    """The hash, as published, in whole numbers."""

    def mixed(word: int) -> int:
        word = ((word ^ word >> 30) * 0xBF58476D1CE4E5B9) % WORD
        word = ((word ^ word >> 27) * 0x94D049BB133111EB) % WORD
        return word ^ word >> 31

    step = 0x9E3779B97F4A7C15
    start = mixed((mixed((seed + step) % WORD) + (position + 1) * step) % WORD)
    return mixed((start + (token + 1) * step) % WORD)


@given(seeds, positions, st.integers(0, 300_000))
def test_a_number_is_the_top_bits_of_the_published_hash(seed: int, position: int, token: int) -> None:
    found = float(_uniform([counter_rng.key(seed, position)], [token]))
    assert found == pytest.approx((_split_mix(seed, position, token) >> 33) / 2**31, abs=2**-24)
    assert 0 < found < 1


@pytest.mark.parametrize(("bits", "bound"), [(0, 2.0**-32), (WORD - 1, 1 - 2.0**-24)])
def test_no_hash_gives_zero_or_one(bits: int, bound: float) -> None:
    """Neither that of zeros nor that of ones; both are found by undoing the hash."""

    def undone(word: int, shift: int) -> int:
        found = word
        for _ in range(64 // shift):
            found = word ^ found >> shift
        return found

    word = undone(bits, 31)
    word = undone(word * pow(0x94D049BB133111EB, -1, WORD) % WORD, 27)
    word = undone(word * pow(0xBF58476D1CE4E5B9, -1, WORD) % WORD, 30)
    start = (word - 0x9E3779B97F4A7C15) % WORD
    signed = start - WORD if start >= WORD // 2 else start
    keys, ids = torch.tensor([[signed]]), torch.tensor([[0]])
    assert float(counter_rng.uniform(keys, ids)) == pytest.approx(bound, rel=1e-9)
    assert 0 < float(counter_rng.exponential(keys, ids)) < torch.inf


@pytest.mark.parametrize(
    ("keys", "ids"),
    [
        ([counter_rng.key(0, 0)], range(200_000)),
        ([counter_rng.key(7, position) for position in range(20_000)], range(5, 15)),
        ([counter_rng.key(seed, 0) for seed in range(20_000)], range(10)),
        ([counter_rng.key(seed << 40, 3) for seed in range(20_000)], range(10)),
    ],
    ids=["ids", "positions", "seeds", "high seeds"],
)
def test_numbers_are_uniform(keys: list[int], ids: range) -> None:
    found = _uniform(keys, ids).flatten()
    for bins in (10, 256, 1000):
        assert abs(_excess(torch.histc(found, bins, 0, 1), found.numel() / bins)) < 4


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 0, 0), (1, 1, 0)),
        ((1, 0, 0), (2, 0, 0)),
        ((1, 0, 0), (1, 0, 1)),
        ((1, 0, 0), (1 << 63, 0, 0)),
        ((0, 1, 0), (1, 0, 0)),
    ],
    ids=["next position", "next seed", "next id", "far seed", "seed and position"],
)
def test_neighbouring_numbers_are_uncorrelated(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    """The joint distribution of two rows of numbers, or of one and itself an id further; and their correlation."""
    count = 100_000
    x, y = (
        _uniform([counter_rng.key(seed, position)], range(shift, shift + count))[0]
        for seed, position, shift in (one, other)
    )
    bins = (x * 16).int() * 16 + (y * 16).int()
    assert abs(_excess(torch.bincount(bins, minlength=256).float(), count / 256)) < 4
    assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 4 / count**0.5


def test_single_bits_of_the_seed_change_half_of_all_bits() -> None:
    keys = [counter_rng.key(0, 0), *(counter_rng.key(1 << bit, 0) for bit in range(64))]
    words = (_uniform(keys, range(1000)) * 2**16).int()
    changed = torch.zeros(64)
    for bit in range(16):
        changed += ((words[1:] ^ words[:1]) >> bit & 1).float().mean(1) / 16
    assert torch.all((changed - 0.5).abs() < 0.02)


def test_exponential_numbers_have_mean_and_variance_one() -> None:
    found = counter_rng.exponential(torch.tensor([[counter_rng.key(3, 3)]]), torch.arange(500_000)[None])
    assert float(found.mean()) == pytest.approx(1, abs=0.01)
    assert float(found.var()) == pytest.approx(1, abs=0.02)


@given(st.lists(st.tuples(seeds, positions), min_size=1, max_size=5), st.lists(st.integers(0, 60_000), min_size=1))
def test_a_number_does_not_depend_on_its_batch(rows: list[tuple[int, int]], ids: list[int]) -> None:
    keys = [counter_rng.key(*row) for row in rows]
    together = counter_rng.exponential(torch.tensor(keys)[:, None], torch.tensor(ids)[None])
    alone = [[float(counter_rng.exponential(torch.tensor([[s]]), torch.tensor([[i]]))) for i in ids] for s in keys]
    assert together.tolist() == alone
