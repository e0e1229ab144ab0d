"""Beam search against transformers' own, on tiny random Llamas: the same tokens, ends and scores."""

from collections.abc import Sequence

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from models.generation.beam_search import BeamSearch, Hypothesis

VOCABULARY = 48
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def models() -> list[LlamaForCausalLM]:
    return [_llama(seed) for seed in range(4)]


def _llama(seed: int) -> LlamaForCausalLM:
    """Its weights are large enough that some tokens are much likelier than others."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def _searched(model: LlamaForCausalLM, prompt: Sequence[int], search: BeamSearch) -> Hypothesis:
    """Drive the search with every beam computed anew at each step."""
    beams = [list(prompt)]
    while not search.done:
        logits = model(torch.tensor(beams), use_cache=False).logits[:, -1].float()
        steps = search.advance(torch.log_softmax(logits, dim=-1))
        beams = [[*beams[parent], token] for parent, token in steps]
    return search.best()


@torch.no_grad()
def _generated(model: LlamaForCausalLM, prompt: Sequence[int], stop_ids: Sequence[int], **options: object) -> tuple:
    """transformers' completion, ending id included, and its score."""
    config = GenerationConfig(
        do_sample=False,
        eos_token_id=list(stop_ids) or None,
        pad_token_id=VOCABULARY - 1,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    ids = torch.tensor([prompt])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return found.sequences[0, len(prompt) :].tolist(), float(found.sequences_scores[0])


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("num_beams", [2, 3, 5, 8])
def test_a_search_ends_where_that_of_transformers_does(
    models: list[LlamaForCausalLM], num_beams: int, length_penalty: float
) -> None:
    reasons = set()
    for seed in range(16):
        draw = torch.Generator().manual_seed(seed)
        prompt = torch.randint(VOCABULARY - 1, (3 + seed % 5,), generator=draw).tolist()
        stop_ids = torch.randint(VOCABULARY - 1, (4 * (seed % 4),), generator=draw).tolist()
        max_tokens, min_tokens = (1, 4, 12, 20)[seed % 4], (0, 0, 3)[seed % 3] * (seed % 4 > 0)
        search = BeamSearch(num_beams, length_penalty, frozenset(stop_ids), max_tokens, min_tokens)
        best = _searched(models[seed % len(models)], prompt, search)
        expected, score = _generated(
            models[seed % len(models)],
            prompt,
            sorted(set(stop_ids)),
            num_beams=num_beams,
            length_penalty=length_penalty,
            max_new_tokens=max_tokens,
            min_new_tokens=min_tokens,
        )
        ending = [] if best.stop_id is None else [best.stop_id]
        assert [*best.tokens, *ending] == expected
        assert best.score == pytest.approx(score, abs=TOLERANCE * max(1, abs(score)))
        assert best.reason == ("length" if best.stop_id is None else "stop")
        reasons.add(best.reason)
    assert reasons == {"stop", "length"} or length_penalty > 1  # which favours the longest


def test_the_first_step_may_have_a_row_for_every_beam(models: list[LlamaForCausalLM]) -> None:
    with torch.no_grad():
        logprobs = torch.log_softmax(models[0](torch.tensor([[1, 2, 3]])).logits[:, -1], dim=-1)
    one, many = (BeamSearch(3, 1.0, frozenset({7}), 5) for _ in range(2))
    assert one.advance(logprobs) == many.advance(logprobs.expand(3, -1))


def test_more_stop_ids_than_continuations_are_no_error() -> None:
    search = BeamSearch(4, 1.0, frozenset(range(100)), 5)
    logprobs = torch.log_softmax(torch.tensor([[0.0, 1.0, 2.0]]), dim=-1)
    assert search.advance(logprobs) == []
    assert (search.best().tokens, search.best().stop_id) == ((), 2)
