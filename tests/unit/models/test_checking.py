"""`mlbus models check`: code search with each mask and end token, perplexity in each precision."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from bench.random_models import write_qodo
from models.catalogue import ModelSpec, load_catalogue
from models.checking import code_search, precision
from models.encoders.base import Encoder
from models.errors import ModelUnavailable
from models.loading.loader import LoadOptions, load, load_generator
from models.weights.hub import locate

MINILM, TINY_CODER = (load_catalogue().get(model) for model in ("minilm", "tiny_coder"))


def loaded(spec: ModelSpec) -> Encoder:
    return load(spec, LoadOptions("cpu", "fp32"))


def of(folder: Path, **fields: Any) -> ModelSpec:
    return load_catalogue({"mine": {"kind": "embedding", "folder": str(folder), **fields}}).get("mine")


def test_every_function_has_one_query() -> None:
    items = code_search.items()
    assert len({item.query for item in items}) == len({item.function for item in items}) == len(items) == 36


@pytest.mark.parametrize("fields", [{"causal": False, "append_eos": True}, {}])
def test_each_mask_and_end_token_is_tried_once(tmp_path: Path, fields: dict[str, Any]) -> None:
    """The entry's own comes first; one that names no mask has the architecture's, which is causal."""
    found = code_search.evaluate(of(write_qodo(tmp_path), **fields), loaded)
    assert [one.problem for one in found] == [None] * 4
    settings = {(one.causal, one.append_eos) for one in found}
    assert settings == {(False, False), (False, True), (True, False), (True, True)}
    assert [one.own for one in found] == [True, False, False, False]
    assert (found[0].causal, found[0].append_eos) == ((False, True) if fields else (True, False))
    assert [one.gain is None for one in found] == [True, False, False, False]
    assert code_search.best(found).ndcg == max(one.ndcg for one in found)


def test_a_model_with_one_mask_and_no_end_token_has_one_setting() -> None:
    found = code_search.evaluate(MINILM, loaded)
    own, *others = found
    assert (own.causal, own.append_eos, own.own) == (False, False, True)
    assert all(one.problem and one.ranking is None for one in others)
    assert own.first > 0.6  # it understands code
    assert code_search.best(found) is own


def test_a_table_of_token_vectors_has_no_setting(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(locate(MINILM) / "tokenizer.json"))
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    model.save(str(tmp_path), create_model_card=False)
    own, *others = code_search.evaluate(of(tmp_path), loaded)
    assert (own.causal, own.ranking is None) == (None, False)
    assert {one.problem for one in others if one.causal} == {
        "`causal` is for transformers, and it is a table of token vectors"
    }


def test_a_model_that_cannot_be_loaded_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"modules\.json"):
        code_search.evaluate(of(tmp_path), loaded)


@pytest.mark.slow
def test_precisions_side_by_side() -> None:
    """The perplexity is transformers' own; a precision that cannot be loaded has its reason."""

    def load_as(dtype: Any, quantization: Any) -> Any:
        if dtype == "bf16":
            raise ModelUnavailable("tiny_coder", "not today")
        return load_generator(TINY_CODER, LoadOptions("cpu", dtype, quantization))

    fp32, bf16, int8, int4 = precision.measure(load_as)
    kept = load_generator(TINY_CODER, LoadOptions("cpu", "fp32"))
    network = AutoModelForCausalLM.from_pretrained(locate(TINY_CODER), dtype=torch.float32).eval()
    ids = torch.tensor([list(kept.prompts(precision.Plain(precision.TEXT)).ids)])
    with torch.no_grad():
        expected = math.exp(float(network(ids, labels=ids).loss))
    assert fp32.perplexity == pytest.approx(expected, rel=1e-4)
    assert fp32.sample == precision.greedy_sample(kept)
    assert (bf16.precision, bf16.problem) == ("bf16", "model 'tiny_coder' is unavailable: not today")
    assert fp32.weight_bytes > int8.weight_bytes > int4.weight_bytes > 0
    assert int8.perplexity == pytest.approx(expected, rel=0.1)
    assert math.isfinite(int4.perplexity)


def test_a_model_that_loads_in_no_precision_cannot_be_checked() -> None:
    def load_as(dtype: Any, quantization: Any) -> Any:
        raise ModelUnavailable("tiny_coder", f"not in {dtype}")

    with pytest.raises(ModelUnavailable, match="not in fp32"):
        precision.measure(load_as)
