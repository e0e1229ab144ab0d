"""How long work takes by its size, as it is learned from what ran."""

import pytest

from service.admission import LinearCost


def test_nothing_is_expected_of_what_never_ran():
    assert (LinearCost().expected_s(100), LinearCost().token_s) == (0, 0)


def test_one_size_tells_nothing_of_others():
    cost = LinearCost()
    for _ in range(10):
        cost.observe(5, 0.05)
    assert cost.expected_s(1) == pytest.approx(0.05)
    assert cost.expected_s(1000) == pytest.approx(0.05)
    assert cost.expected_s(1000, parts=3) == pytest.approx(0.15)


def test_two_sizes_tell_what_each_token_takes():
    cost = LinearCost()
    for tokens in (1, 100) * 10:
        cost.observe(tokens, 0.01 + 0.001 * tokens)
    assert cost.token_s == pytest.approx(0.001)
    assert cost.expected_s(1000, parts=2) == pytest.approx(1.02)


def test_what_ran_last_counts_most():
    cost = LinearCost()
    for seconds in (0.001, 0.01):
        for tokens in (1, 100) * 200:
            cost.observe(tokens, seconds * tokens)
    assert cost.expected_s(50) == pytest.approx(0.5, rel=0.01)


def test_no_cost_is_less_than_nothing():
    cost = LinearCost()
    for tokens in (1, 100) * 10:
        cost.observe(tokens, 1.0 if tokens == 1 else 0.1)
    assert cost.token_s == 0
    assert cost.expected_s(1000) > 0


def test_noise_in_what_is_nearly_of_one_size_makes_nothing_dearer_than_it_was():
    cost = LinearCost()
    for tokens, seconds in ((99, 0.08), (101, 0.12)) * 10:
        cost.observe(tokens, seconds)
    assert cost.expected_s(100) == pytest.approx(0.1, rel=0.01)
    assert cost.expected_s(1000) == pytest.approx(1, rel=0.01)
