"""How much of a prompt a step computes, by what steps have taken."""

from models.generation.prefill_budget import LEAST_TOKENS, STRETCH, PrefillBudget


def taught(decode_s: float, token_s: float, most: int = 128) -> PrefillBudget:
    pace = PrefillBudget(most)
    pace.ran(4, 0, decode_s)
    pace.ran(4, 100, decode_s + 100 * token_s)
    return pace


def test_at_first_as_much_as_may_be() -> None:
    assert PrefillBudget(128).chunk_tokens == 128


def test_a_step_takes_no_more_than_so_many_times_as_long() -> None:
    assert taught(decode_s=0.02, token_s=0.001).chunk_tokens == int((STRETCH - 1) * 20)


def test_a_prompt_comes_to_an_end_however_slow() -> None:
    assert taught(decode_s=0.001, token_s=0.01).chunk_tokens == LEAST_TOKENS
    assert taught(decode_s=0.001, token_s=0.01, most=4).chunk_tokens == 4


def test_the_limit_holds_however_fast() -> None:
    assert taught(decode_s=1.0, token_s=0.0).chunk_tokens == 128
    assert taught(decode_s=1.0, token_s=0.001).chunk_tokens == 128


def test_a_step_of_prompts_alone_teaches_nothing() -> None:
    pace = taught(decode_s=0.02, token_s=0.001)
    before = pace.chunk_tokens
    pace.ran(0, 512, 100.0)
    assert pace.chunk_tokens == before
