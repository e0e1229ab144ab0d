"""`mlbus models check`: code search with each mask and end token, perplexity in each precision."""

import json
import math
import re
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
from models.errors import ModelUnavailable, UnknownModel
from models.loading.loader import LoadOptions, load, load_generator
from models.weights.hub import locate
from service.cli.models_check import check_model
from service.settings import Settings

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


@pytest.mark.slow
def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(device="cpu", dtype="fp32", data_dir=tmp_path)
    check_model(settings, "tiny_coder", as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["precision", "weights", "perplexity", "greedy", "sample"]
    names = [line.partition("  ")[0] for line in lines if line.startswith(("fp", "bf", "int"))]
    assert names == ["fp32 (in the catalogue)", "bf16", "int8", "int4"]
    check_model(settings, "minilm", as_json=True)
    found = json.loads(capsys.readouterr().out)
    (row,) = found["settings"]
    assert (found["queries"], row["causal"], row["catalogue"], row["best"]) == (36, False, True, True)
    assert row["ndcg_at_10"] > 0.7


def test_a_better_setting_is_printed_as_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_qodo(tmp_path / "model")
    for causal in (False, True):
        entry = {"kind": "embedding", "folder": str(tmp_path / "model"), "causal": causal}
        settings = Settings(device="cpu", dtype="fp32", data_dir=tmp_path, catalogue={"mine": entry})
        check_model(settings, "mine", as_json=False)
        printed = capsys.readouterr().out
        assert ("mine ranks best as the catalogue has it" in printed) != ("[catalogue.mine]\ncausal = " in printed)
        assert len(re.findall(r"^(both ways|causal).*0\.\d{3} ", printed, re.M)) == 4


def test_a_missing_model_is_an_error_with_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for model, error in ("qodo", ModelUnavailable), ("codellama_7b", ModelUnavailable), ("nobody", UnknownModel):
        with pytest.raises(error, match=f"mlbus models pull {model}|unknown model"):
            check_model(Settings(device="cpu", data_dir=tmp_path), model, as_json=False)


def test_code_in_a_sample_is_printed_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        precision.PrecisionResult("fp32", "fp32", 1000, 2.0, "text[i]"),
        precision.PrecisionResult("int8", problem="not [so]"),
    ]
    monkeypatch.setattr(precision, "measure", lambda load: found)
    check_model(Settings(device="cpu", dtype="fp32", data_dir=tmp_path), "tiny_coder", as_json=False)
    printed = capsys.readouterr().out
    assert "text[i]" in printed
    assert "not [so]" in printed
    assert "\\" not in printed
