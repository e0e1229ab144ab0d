"""What an engine's step takes, as it is learned from steps of texts, and of prompts beside them."""

import pytest

from service.generation.step_cost import StepCost


def learned() -> StepCost:
    """20 ms a step, 10 ms for each text in it and 1 ms for each token of a prompt; eight texts at most."""
    cost = StepCost()
    for _ in range(40):
        for texts, prompt_tokens in ((1, 0), (8, 0), (4, 0), (4, 50)):
            cost.took(texts, prompt_tokens, 0.02 + 0.01 * texts + 0.001 * prompt_tokens)
    return cost


def test_nothing_is_expected_of_what_never_ran():
    cost = StepCost()
    assert (cost.texts_s(5), cost.prompts_s(100, 5), cost.prompt_token_s) == (0, 0, 0)


def test_a_text_and_a_token_of_a_prompt_cost_what_each_costs():
    cost = learned()
    assert cost.texts_s(6) == pytest.approx(0.08, rel=0.01)
    assert cost.prompt_token_s == pytest.approx(0.001, rel=0.01)
    assert cost.prompt_tokens == pytest.approx(12.5, rel=0.2)


def test_more_texts_than_ever_may_take_as_much_longer_as_they_are_more():
    cost = learned()
    assert cost.texts_s(9) == pytest.approx(0.11, rel=0.01)
    assert cost.texts_s(27) == pytest.approx(3 * cost.texts_s(9))


def test_where_one_text_ran_alone_a_second_is_tried():
    cost = StepCost()
    cost.took(1, 0, 0.1)
    assert (cost.texts_s(1), cost.texts_s(2), cost.texts_s(4)) == pytest.approx((0.1, 0.1, 0.2))


def test_a_prompt_takes_as_many_steps_as_the_longest_part_leaves_it():
    cost = learned()
    assert cost.prompts_s(40, 8) == pytest.approx(0.04, rel=0.01)
    assert cost.prompts_s(120, 8) == pytest.approx(0.12 + 2 * 0.1, rel=0.01)


def test_a_step_of_prompts_alone_tells_what_their_tokens_take():
    cost = StepCost()
    cost.took(0, 100, 0.1)
    assert (cost.texts_s(1), cost.prompt_token_s) == pytest.approx((0, 0.001))
