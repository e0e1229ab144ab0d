"""When a text would be ready: what is learned of steps and ends, and what follows from it for those that come later."""

import pytest

from models.generation.request import Finished, Request, Usage
from service.generation_times import GenerationTimes


def request(max_tokens: int = 50, prompt: int = 10) -> Request:
    return Request("r", range(prompt), max_tokens)


def learned(places: int = 4) -> GenerationTimes:
    """A step takes 20 ms, and 1 ms for each of its tokens."""
    times = GenerationTimes(places)
    for _ in range(40):
        for tokens in (1, 4, 32):
            times.stepped(tokens, 0.02 + 0.001 * tokens)
    return times


def test_nothing_is_expected_of_an_engine_that_has_not_run():
    ready = GenerationTimes(4).ready(request(), [request()] * 4, [request()] * 10)
    assert (ready.begins_s, ready.ends_s, ready.alone_s) == (0, 0, 0)


def test_steps_of_one_size_tell_nothing_of_others():
    times = GenerationTimes(4)
    for _ in range(10):
        times.stepped(1, 0.03)
    ready = times.ready(request(), [request()] * 2, [])
    assert (ready.ends_s, ready.alone_s) == pytest.approx((1.5, 1.5))


def test_alone_a_text_takes_its_prompt_and_its_steps():
    ready = learned().ready(request(), [], [])
    assert ready.alone_s == pytest.approx(0.01 + 50 * 0.021)
    assert ready.begins_s == pytest.approx(0.01)
    assert ready.ends_s == pytest.approx(ready.alone_s, rel=0.05)


def test_beside_others_steps_take_longer_and_prompts_too():
    few, many = (learned(places=32).ready(request(), [request()] * count, []) for count in (2, 20))
    assert many.ends_s - few.ends_s == pytest.approx(50 * 18 * 0.001 * 1.2)  # a prompt of 10 for each 50 tokens


def test_where_all_places_are_taken_a_text_waits_for_those_before_it():
    free, full, queued = (
        learned().ready(request(), [request()] * running, [request()] * waiting)
        for running, waiting in ((3, 0), (4, 0), (4, 8))
    )
    step_s = 0.02 + 4 * 1.2 * 0.001
    assert full.begins_s - free.begins_s == pytest.approx(50 / 4 * step_s)
    assert queued.begins_s - full.begins_s == pytest.approx(8 * 50 / 4 * step_s + 8 * 0.01)


def test_texts_are_expected_to_be_as_long_as_the_latest_were():
    times = learned()
    for _ in range(200):
        times.ended(request(max_tokens=100), Finished("r", "stop", Usage(10, 5, 25)))
    times.ended(request(max_tokens=100), Finished("r", "cancelled", Usage(10, 0, 1)))
    assert times.expected(request(max_tokens=400)) == pytest.approx(100, rel=0.01)
    assert times.ready(request(prompt=1000), [], []).begins_s == pytest.approx(0.5, rel=0.01)  # half were cached
