"""smollm2, the one model of real weights that writes: converted without loss, and written as transformers writes."""

from functools import cache

import numpy as np
import pytest
import torch
from generation_engines import Oracle, assert_scored, greedy, new_engine, run
from gguf import GGUFReader, dequantize
from gguf_model import SMOLLM2, SOURCE, cache_folder, converted_folder
from safetensors.torch import load_file

from models.generation import engine
from models.generation.causal_lm import CausalLM
from models.generation.load_checks import TEST_TEXT
from models.generation.types import Chat, Message, Plain, Prompt, Request, Sampling
from models.loading.load_cache import LoadCache
from models.loading.loader import LoadOptions, load_generator

pytestmark = pytest.mark.slow
NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
    "blk.17.ffn_gate.weight": "model.layers.17.mlp.gate_proj.weight",
    "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
    "blk.29.attn_norm.weight": "model.layers.29.input_layernorm.weight",
}
"""Of tensors that are stored in the order in which transformers reads them: in the file -> converted."""


@cache
def model() -> CausalLM:
    return load_generator(SMOLLM2, LoadOptions("cpu", "fp32", cache=LoadCache(cache_folder())))


@cache
def oracle() -> Oracle:
    return Oracle(converted_folder(), model())


def test_the_weights_are_the_files_own_rounded_to_bf16() -> None:
    converted = load_file(converted_folder() / "model.safetensors")
    stored = {tensor.name: tensor for tensor in GGUFReader(SOURCE).tensors}
    assert len(converted) == len(stored)
    for theirs, ours in NAMES.items():
        values = torch.from_numpy(np.array(dequantize(stored[theirs].data, stored[theirs].tensor_type)))
        assert torch.equal(values.to(torch.bfloat16), converted[ours]), ours


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("def fib(n):", ["def", " fib", "(", "n", "):"]),
        ("x = 1234", ["x", " =", " ", "1", "2", "3", "4"]),
        # A number stands alone: the line break or the spaces before it are one token, as without it.
        ("\n\n42", ["\n\n", "4", "2"]),
        ("    7", ["    ", "7"]),
        ("<|im_start|>user\n", ["<|im_start|>", "user", "\n"]),
    ],
)
def test_texts_are_split_as_the_model_was_trained(text: str, tokens: list[str]) -> None:
    tokenizer = model().tokenizer
    assert [tokenizer.token_bytes(token).decode(errors="replace") for token in tokenizer.encode(text)] == tokens


CHAT = Chat((Message("user", "Write a Python function is_even(n)."),))


@pytest.mark.parametrize(
    "prompt", [CHAT, Plain("def fib(n):"), Plain("    1234\n\n56")], ids=["chat", "code", "digits"]
)
def test_greedy_text_equals_generate(prompt: Prompt) -> None:
    with torch.inference_mode():
        tokens = model().prompts(prompt)
        expected = oracle().text(list(tokens.ids), 40, tokens.stop_ids)
        request = greedy("a", list(tokens.ids), 40, stop_ids=tokens.stop_ids)
        assert run(new_engine(model()), request)["a"].text == expected


def test_prompt_logprobs_are_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a thousandth of a nat, in several parts."""
    monkeypatch.setattr(engine, "SCORED_BYTES", 64 * 4 * model().facts.vocabulary)
    with torch.inference_mode():
        ids = list(model().prompts(Plain(TEST_TEXT * 3)).ids)
        request = Request("a", ids, 0, sampling=Sampling(logprobs=5), prompt_logprobs=True)
        outcome = run(new_engine(model()), request)["a"]
        assert_scored(outcome.scored, ids, oracle(), 5, 1e-3)


@pytest.mark.parametrize(
    ("task", "check"),
    [
        ("Write a Python function is_even(n).", "assert is_even(4) and not is_even(7)"),
        ("Write a Python function reverse_string(s).", "assert reverse_string('abc') == 'cba'"),
    ],
)
def test_generated_functions_work(task: str, check: str) -> None:
    with torch.inference_mode():
        tokens = model().prompts(Chat((Message("user", task),)))
        text = run(new_engine(model()), greedy("a", list(tokens.ids), 120, stop_ids=tokens.stop_ids))["a"].text
    code = text.partition("```python\n")[2].partition("```")[0]
    exec(code + check, {})
