"""When a completion would be ready, as learned from steps and ends."""

import pytest

from models.generation.types import Finished, Request, Usage
from service.generation.step_times import GenerationTimes, Ready, StepCost


def request(max_tokens: int = 50, prompt: int = 10) -> Request:
    return Request("r", range(prompt), max_tokens)


def ready(times: GenerationTimes, running: int = 0, waiting: int = 0, made: int = 0, **asked: int) -> Ready:
    """When a completion would be ready behind others; made: tokens of each that runs."""
    before = [(request(), made)] * running + [(request(), 0)] * waiting
    return times.ready(request(**asked), before)


def learned(places: int = 4) -> GenerationTimes:
    """A step takes 20 ms, 1 ms for each of its texts and 1 ms for each token of a prompt; those came long ago."""
    times = GenerationTimes(places)
    times.stepped(4, 0, 0.024)
    for _ in range(40):
        times.stepped(4, 100, 0.124)
    for _ in range(200):
        for texts in (1, 4, 32):
            times.stepped(texts, 0, 0.02 + 0.001 * texts)
    return times


def test_nothing_is_expected_of_an_engine_that_has_not_run():
    assert ready(GenerationTimes(4), running=4, waiting=10) == Ready(0, 0, 0)


def test_steps_of_one_size_tell_nothing_of_smaller_ones():
    times = GenerationTimes(4)
    for _ in range(10):
        times.stepped(3, 0, 0.03)
    found = ready(times, running=2, made=1)
    assert (found.ends_s, found.alone_s) == pytest.approx((51 * 0.03, 1.5))


def test_alone_a_text_takes_its_prompt_and_its_steps():
    found = ready(learned())
    assert found.alone_s == pytest.approx(0.01 + 50 * 0.021)
    assert found.begins_s == pytest.approx(0.01)
    assert found.ends_s == pytest.approx(found.alone_s)


def test_beside_others_steps_take_longer():
    few, many = (ready(learned(places=32), running=count, made=1) for count in (2, 20))
    assert many.ends_s - few.ends_s == pytest.approx(51 * 18 * 0.001)  # one step runs already


def test_prompts_that_are_not_read_yet_come_first():
    read, unread = (ready(learned(places=32), running=8, made=made) for made in (1, 0))
    assert unread.begins_s - read.begins_s == pytest.approx(8 * 10 * 0.001)


def test_prompts_go_on_coming_as_they_came_lately():
    times = learned(places=32)
    before = ready(times)
    for _ in range(200):
        times.stepped(1, 20, 0.041)
    assert ready(times).ends_s - before.ends_s == pytest.approx(50 * 20 * 0.001, rel=0.01)
    assert ready(times).alone_s == pytest.approx(before.alone_s, rel=0.01)


def test_where_all_slots_are_taken_a_text_waits_for_those_before_it():
    step_s = 0.02 + 4 * 0.001
    free, full, nearly, queued = (
        ready(learned(), **before)
        for before in (
            {"running": 3, "made": 1},
            {"running": 4, "made": 1},
            {"running": 4, "made": 40},
            {"running": 4, "made": 1, "waiting": 8},
        )
    )
    assert full.begins_s - free.begins_s == pytest.approx((49 - 1) * step_s)
    assert nearly.begins_s - free.begins_s == pytest.approx((10 - 1) * step_s)
    assert queued.begins_s - full.begins_s == pytest.approx(2 * 50 * step_s)


def test_texts_are_expected_to_be_as_long_as_the_latest_were():
    times = learned()
    for _ in range(200):
        times.ended(request(max_tokens=100), Finished("r", "stop", Usage(10, 5, 25)))
    times.ended(request(max_tokens=100), Finished("r", "cancelled", Usage(10, 0, 1)))
    assert times.expected(request(max_tokens=400)) == pytest.approx(100, rel=0.01)
    assert ready(times, prompt=100).begins_s == pytest.approx(0.05, rel=0.01)  # half were cached


def test_a_first_text_that_ended_early_tells_what_to_expect_of_the_next():
    times = learned()
    times.ended(request(max_tokens=1000), Finished("r", "stop", Usage(10, 0, 50)))
    assert times.expected(request(max_tokens=1000)) == pytest.approx(50)


# The cost of a step


def learned_cost() -> StepCost:
    """20 ms a step, 10 ms for each completion in it and 1 ms for each token of a prompt; eight completions at most."""
    cost = StepCost()
    for _ in range(40):
        for completions, prompt_tokens in ((1, 0), (8, 0), (4, 0), (4, 50)):
            cost.observe(completions, prompt_tokens, 0.02 + 0.01 * completions + 0.001 * prompt_tokens)
    return cost


def test_nothing_is_expected_of_what_never_ran():
    cost = StepCost()
    assert (cost.completions_s(5), cost.prompts_s(100, 5), cost.prompt_token_s) == (0, 0, 0)


def test_a_text_and_a_token_of_a_prompt_cost_what_each_costs():
    cost = learned_cost()
    assert cost.completions_s(6) == pytest.approx(0.08, rel=0.01)
    assert cost.prompt_token_s == pytest.approx(0.001, rel=0.01)
    assert cost.prompt_tokens == pytest.approx(12.5, rel=0.2)


def test_more_completions_than_ever_may_take_as_much_longer_as_they_are_more():
    cost = learned_cost()
    assert cost.completions_s(9) == pytest.approx(0.11, rel=0.01)
    assert cost.completions_s(27) == pytest.approx(3 * cost.completions_s(9))


def test_where_one_text_ran_alone_a_second_is_tried():
    cost = StepCost()
    cost.observe(1, 0, 0.1)
    assert (cost.completions_s(1), cost.completions_s(2), cost.completions_s(4)) == pytest.approx((0.1, 0.1, 0.2))


def test_a_prompt_takes_as_many_steps_as_the_longest_part_leaves_it():
    cost = learned_cost()
    assert cost.prompts_s(40, 8) == pytest.approx(0.04, rel=0.01)
    assert cost.prompts_s(120, 8) == pytest.approx(0.12 + 2 * 0.1, rel=0.01)


def test_a_step_of_prompts_alone_tells_what_their_tokens_take():
    cost = StepCost()
    cost.observe(0, 100, 0.1)
    assert (cost.completions_s(1), cost.prompt_token_s) == pytest.approx((0, 0.001))
