"""The tiny causal LMs of the tests: read by transformers as they are, and worth comparing texts of."""

import logging
from pathlib import Path

import pytest
import torch
from generation_models import ALL
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.random_generators import write_codellama, write_starcoder


@pytest.mark.parametrize("name", ALL)
def test_greedy_text_varies_and_is_decided(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    folder = ALL[name]()
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("def fib(n):", return_tensors="pt")
    made = model.generate(
        **prompt, max_new_tokens=64, do_sample=False, return_dict_in_generate=True, output_scores=True, pad_token_id=0
    )
    ids = made.sequences[0, prompt.input_ids.shape[1] :].tolist()
    best = torch.cat(made.scores).topk(2).values
    assert len(ids) == 64
    assert len(set(ids)) > 20
    assert (best[:, 0] - best[:, 1]).min() > 1e-4
    assert not caplog.records


def test_rows_past_the_tokeniser_are_never_made(tmp_path: Path) -> None:
    folder = write_codellama(tmp_path, vocab=2000, shards=2, dtype="bfloat16")
    head = load_file(folder / "model-00002-of-00002.safetensors")["lm_head.weight"]
    own = AutoTokenizer.from_pretrained(folder).backend_tokenizer.token_to_id("▁<EOT>") + 1
    assert head.shape[0] == 2000
    assert head.dtype == torch.bfloat16
    assert not head[own:].any()
    assert head[own - 1].any()


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    files = [
        next(write_starcoder(tmp_path / str(place), seed=seed).glob("*.safetensors")).read_bytes()
        for place, seed in enumerate((1, 1, 2))
    ]
    assert files[0] == files[1] != files[2]
