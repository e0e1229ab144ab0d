"""Loaded generation models against transformers' own: the same scores in fp32, near ones in lower precision."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.random_generators import write_codellama, write_llama, write_starcoder
from models.catalogue import Dtype, Quantization, load_catalogue
from models.generation.causal_lm import CausalLM
from models.generation.load_checks import TEST_TEXT, divergence, model_logits
from models.loading.footprint import footprint
from models.loading.loader import LoadOptions, load_generator
from models.quantization.quantize import weight_bytes

Layout = Callable[[Path], Path]
LAYOUTS: dict[str, Layout] = {
    "codellama": lambda folder: write_codellama(folder, shards=2),
    "grouped": lambda folder: write_llama(folder, kv_heads=2),
    "starcoder": lambda folder: write_starcoder(folder, shards=2),
    "multi_head": lambda folder: write_starcoder(folder, multi_query=False),
}
COSINE = {"bf16": 0.999, "int8": 0.997, "int4": 0.8}
NATS = {"bf16": 0.01, "int8": 0.03, "int4": 2.0}
"""The mean cosine of the scores to those in fp32 at least, and the divergence a token at most; of random weights, which
forgive less than learned ones."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=LAYOUTS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return LAYOUTS[request.param](tmp_path_factory.mktemp(request.param))


def loaded(folder: Path, dtype: Dtype, quantization: Quantization | None = None) -> CausalLM:
    spec = load_catalogue({"mine": {"kind": "generation", "folder": str(folder)}}).get("mine")
    return load_generator(spec, LoadOptions("cpu", dtype, quantization))


def some_ids(folder: Path) -> list[int]:
    return AutoTokenizer.from_pretrained(folder)(TEST_TEXT)["input_ids"]


def test_scores_in_fp32_are_transformers_own(folder: Path) -> None:
    """To 1e-5 of the largest; transformers reads the folder by itself."""
    ids = some_ids(folder)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = own(torch.tensor([ids])).logits[0]
    found = model_logits("mine", loaded(folder, "fp32").network, ids)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [("bf16", None), ("bf16", "int8"), ("bf16", "int4"), ("fp32", "int8"), ("fp32", "int4")],
    ids=lambda value: str(value),
)
def test_scores_in_lower_precision_are_near(folder: Path, dtype: Dtype, quantization: Quantization | None) -> None:
    """In short and long batches, which are multiplied in different ways."""
    plain, lower = loaded(folder, "fp32"), loaded(folder, dtype, quantization)
    ids = some_ids(folder)
    for length in (1, 8, 16, len(ids)):
        exact, found = (model_logits("mine", each.network, ids[:length]) for each in (plain, lower))
        near = torch.nn.functional.cosine_similarity(exact, found, dim=-1)
        assert near.mean() >= COSINE[quantization or "bf16"], length
        assert divergence(exact, found) <= NATS[quantization or "bf16"], length


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_weight_and_kv_bytes_match_the_footprint(folder: Path, quantization: Quantization | None) -> None:
    model = loaded(folder, "bf16", quantization)
    spec = load_catalogue({"mine": {"kind": "generation", "folder": str(folder)}}).get("mine")
    facts = footprint(spec)
    assert model.facts.weight_bytes == weight_bytes(model.network)
    assert model.facts.weight_bytes == pytest.approx(facts.sizes[quantization or "bf16"], rel=0.01)
    assert model.kv_shape.token_bytes == facts.kv_bytes_per_token
