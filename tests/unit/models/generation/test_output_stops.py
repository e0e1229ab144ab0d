"""Stop strings: the same end wherever the text is split, and no more held back than must be."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models.generation.output import StopMatcher

STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)
TEXTS = st.text("abc", max_size=30)


def at_once(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the first end of a stop string, the longest of those that end there."""
    for end in range(len(text) + 1):
        if ending := [stop for stop in stops if text[:end].endswith(stop)]:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


def split(text: str, stops: list[str], cuts: list[int]) -> tuple[str, str | None]:
    matcher, sent = StopMatcher(stops), ""
    for start, end in itertools.pairwise([0, *sorted(cuts), len(text)]):
        safe, stop = matcher.push(text[start:end])
        sent += safe
        if stop is not None:
            return sent, stop
    return sent + matcher.flush(), None


@given(TEXTS, STOPS, st.data())
@example("ab", ["b", "ab"], None)
def test_any_split_ends_like_the_whole_text(text: str, stops: list[str], data: st.DataObject | None) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)))) if data else [1]
    assert split(text, stops, cuts) == at_once(text, stops)


@pytest.mark.parametrize("stops", [["\n\n"], ["END", "END.", "ND"], ["aab"], ["🙂x", "🙂"], []])
def test_every_single_split_ends_like_the_whole_text(stops: list[str]) -> None:
    text = "def f():\n return aaab\n🙂y END. \n\n🙂x"
    for cut in range(len(text) + 1):
        assert split(text, stops, [cut]) == at_once(text, stops)
    assert split(text, stops, list(range(len(text)))) == at_once(text, stops)


@given(TEXTS, STOPS, st.data())
def test_only_a_possible_stop_string_is_held_back(text: str, stops: list[str], data: st.DataObject) -> None:
    matcher, sent = StopMatcher(stops), ""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    for start, end in itertools.pairwise([0, *cuts]):
        safe, stop = matcher.push(text[start:end])
        sent += safe
        if stop is not None:
            return
        ends = [text[place:end] for place in range(end + 1)]
        live = max(len(tail) for tail in ends if not tail or any(stop.startswith(tail) for stop in stops))
        assert sent == text[: end - live]


def test_a_longer_partial_match_gives_way_to_a_shorter_one() -> None:
    matcher = StopMatcher(["aab"])
    assert matcher.push("aa") == ("", None)
    assert matcher.push("a") == ("a", None)
    assert matcher.push("b") == ("", "aab")
    assert matcher.flush() == ""


def test_the_first_end_wins_over_the_first_beginning() -> None:
    assert StopMatcher(["abcd", "bc"]).push("abcd") == ("a", "bc")
    assert StopMatcher(["bc", "abc"]).push("abcd") == ("", "abc")
