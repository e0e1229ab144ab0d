"""Footprints against the sizes that the models' authors publish, and plans."""

import json
import re
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event

import pytest
from transformers import PretrainedConfig, PreTrainedModel

from bench.random_models import write_qodo
from models.catalogue import load_catalogue
from models.errors import UnknownArchitecture
from models.loading.footprint import Footprint, Precision, encoder_skeleton, footprint, model_config
from models.loading.plan import Candidate, Fate, Plan, Reserve, candidate, native, plan
from models.loading.reading import READ_LOCK

GB = 10**9
NO_RESERVE = Reserve(working_bytes=0, kv_tokens=0)
PUBLISHED: list[tuple[str, Precision, float]] = [
    ("qodo", "fp32", 6.17),
    ("qodo", "bf16", 3.09),
    ("jina_v3", "fp32", 2.29),
    ("jina_v3", "fp16", 1.14),
    ("minilm", "fp32", 0.0909),
    ("codellama_7b", "bf16", 13.48),
    ("starcoder_1b", "bf16", 2.3),
]
"""Gigabytes of the files in the models' repositories; StarCoder's to one decimal place."""


def model(name: str, bf16: float, generates: bool = False, steps: tuple[Precision, ...] = ("bf16",)) -> Candidate:
    """One of `bf16` gigabytes in bf16, half and a quarter of that in int8 and int4."""
    sizes = {"bf16": int(bf16 * GB), "int8": int(bf16 * GB / 2), "int4": int(bf16 * GB / 4)}
    return Candidate(Footprint(name, 0, sizes, kv_bytes_per_token=1000 if generates else 0), generates, steps)


ALL: tuple[Precision, ...] = ("bf16", "int8", "int4")


def test_a_footprint_is_measured_while_no_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both change the process's default dtype for a while: two at once could leave bf16 behind."""
    measuring, go_on = Event(), Event()

    def slow(config: PretrainedConfig) -> PreTrainedModel:
        measuring.set()
        assert go_on.wait(60)
        return encoder_skeleton(config)

    def read_nothing() -> None:
        with READ_LOCK:
            pass

    monkeypatch.setattr("models.loading.footprint.encoder_skeleton", slow)
    with ThreadPoolExecutor(2) as threads:
        measured = threads.submit(footprint, load_catalogue().get("minilm"))
        assert measuring.wait(60)
        read = threads.submit(read_nothing)
        early = wait([read], timeout=0.1).done
        go_on.set()
        assert not early
        read.result(60)
        assert measured.result(60).parameters


def outcome(planned: Plan) -> dict[str, tuple[Precision, Fate]]:
    return {placement.model: (placement.precision, placement.fate) for placement in planned.placements}


@pytest.mark.parametrize(("name", "precision", "gigabytes"), PUBLISHED)
def test_published_sizes(name: str, precision: Precision, gigabytes: float) -> None:
    found = footprint(load_catalogue().get(name)).sizes[precision] / GB
    assert found == pytest.approx(gigabytes, rel=0.02 if name == "starcoder_1b" else 0.01)


def test_keys_and_values_of_a_token() -> None:
    catalogue = load_catalogue()
    kv = {name: footprint(catalogue.get(name)).kv_bytes_per_token for name in ("qodo", "codellama_7b", "starcoder_1b")}
    assert kv == {"qodo": 0, "codellama_7b": 512 * 1024, "starcoder_1b": 12 * 1024}


def test_an_onnx_model_comes_in_the_precisions_of_its_graphs() -> None:
    assert set(footprint(load_catalogue().get("jina_v3")).sizes) == {"fp32", "fp16"}


def test_a_configuration_in_the_folder_comes_first(tmp_path: Path) -> None:
    write_qodo(tmp_path)
    catalogue = load_catalogue({"qodo": {"kind": "embedding", "folder": str(tmp_path)}})
    assert footprint(catalogue.get("qodo")).parameters < 10**6


def test_a_shipped_configuration_is_for_its_own_repository_alone() -> None:
    catalogue = load_catalogue({"qodo": {"kind": "embedding", "repository": "somebody/else"}})
    with pytest.raises(UnknownArchitecture, match="on this machine; fetch them: mlbus models pull qodo"):
        footprint(catalogue.get("qodo"))


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("modules.json", '["a"]', "cannot be read (TypeError"),
        ("config.json", '{"model_type"', "cannot be read (JSONDecodeError"),
        ("config.json", '["bert"]', "config.json is not a JSON object"),
        ("config.json", '{"model_type": "bert", "hidden_size": "wide"}', "is not known: "),
        ("modules.json", '[{"path": "elsewhere"}]', "elsewhere/config.json; point its entry at a complete copy"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_not_one_that_is_missing(
    tmp_path: Path, file: str, text: str, told: str
) -> None:
    (tmp_path / file).write_text(text)
    catalogue = load_catalogue({"mine": {"kind": "embedding", "folder": str(tmp_path)}})
    with pytest.raises(UnknownArchitecture, match=f"'mine'.*{re.escape(told)}"):
        footprint(catalogue.get("mine"))


def test_shipped_configurations_name_the_repositories_of_the_catalogue() -> None:
    for spec in load_catalogue():
        if spec.repository is not None and spec.package is None:
            assert model_config(spec)["_name_or_path"] == spec.repository


def test_an_unknown_architecture_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_thing"}))
    catalogue = load_catalogue({"mine": {"kind": "embedding", "folder": str(tmp_path)}})
    with pytest.raises(UnknownArchitecture, match="mine"):
        footprint(catalogue.get("mine"))


def test_its_own_precision_where_all_fit() -> None:
    planned = plan([model("a", 2, True, ALL), model("b", 3)], 5 * GB, NO_RESERVE)
    assert outcome(planned) == {"a": ("bf16", "fits"), "b": ("bf16", "fits")}
    assert (planned.fits, planned.weight_bytes) == (True, 5 * GB)


def test_generation_goes_down_before_a_larger_embedding_model() -> None:
    planned = plan([model("embeds", 8, False, ALL), model("writes", 4, True, ALL)], 10 * GB, NO_RESERVE)
    assert outcome(planned) == {"embeds": ("bf16", "fits"), "writes": ("int8", "fits")}
    planned = plan([model("embeds", 8, False, ALL), model("writes", 4, True, ALL)], 5 * GB, NO_RESERVE)
    assert outcome(planned) == {"embeds": ("int8", "fits"), "writes": ("int4", "fits")}


def test_the_largest_goes_down_first() -> None:
    planned = plan([model("small", 2, True, ALL), model("large", 8, True, ALL)], 7 * GB, NO_RESERVE)
    assert outcome(planned) == {"small": ("bf16", "fits"), "large": ("int8", "fits")}


def test_what_still_does_not_fit_is_evicted_by_use() -> None:
    planned = plan([model("first", 3), model("second", 2), model("third", 2)], 4 * GB, NO_RESERVE)
    assert outcome(planned) == {"first": ("bf16", "evicted"), "second": ("bf16", "fits"), "third": ("bf16", "fits")}


def test_what_is_too_large_evicts_nothing() -> None:
    planned = plan([model("a", 2), model("huge", 40, True, ALL)], 4 * GB, NO_RESERVE)
    assert outcome(planned) == {"a": ("bf16", "fits"), "huge": ("bf16", "too large")}


def test_reductions_that_eviction_made_unnecessary_are_taken_back() -> None:
    planned = plan([model("embeds", 3), model("writes", 8, True, ALL)], int(4.5 * GB), NO_RESERVE)
    assert outcome(planned) == {"embeds": ("bf16", "evicted"), "writes": ("int8", "fits")}
    three = [model("first", 5), model("embeds", 4, False, ALL), model("writes", 4, True, ALL)]
    assert outcome(plan(three, 6 * GB, NO_RESERVE)) == {
        "first": ("bf16", "evicted"),
        "embeds": ("bf16", "fits"),
        "writes": ("int8", "fits"),
    }


def test_the_reserve_counts() -> None:
    writes = model("writes", 4, True, ALL)
    assert outcome(plan([writes], 4 * GB, NO_RESERVE))["writes"] == ("bf16", "fits")
    assert outcome(plan([writes], 4 * GB, Reserve(1, 0)))["writes"] == ("int8", "fits")
    planned = plan([writes], 4 * GB, Reserve(0, 1))
    assert outcome(planned)["writes"] == ("int8", "fits")
    assert planned.kv_bytes == 10**6  # the least that the settings state


def test_own_precision() -> None:
    catalogue = load_catalogue(
        {
            "int8": {"kind": "embedding", "folder": "x", "quantization": "int8"},
            "fp32": {"kind": "generation", "folder": "x", "dtype": "fp32"},
            "graph": {"kind": "embedding", "folder": "x", "served_by": "onnx", "dtype": "bf16"},
            "jina_v3": {"dtype": "fp32"},
        }
    )
    names = ("qodo", "minilm", "int8", "fp32", "graph", "jina_v3")
    assert [native(catalogue.get(name)) for name in names] == ["bf16", "bf16", "int8", "fp32", "fp32", "fp32"]
    assert native(load_catalogue().get("jina_v3")) == "fp16"
    sizes = Footprint("x", 0, dict.fromkeys(("fp32", "bf16", "fp16", "int8", "int4"), 0))
    assert candidate(catalogue.get("fp32"), sizes, True).steps == ("fp32", "bf16", "int8", "int4")
    assert candidate(catalogue.get("int8"), sizes, True).steps == ("int8", "int4")
    table = Footprint("x", 0, {"fp32": 0, "bf16": 0})  # of token vectors, which are not quantised
    assert candidate(catalogue.get("fp32"), table, True).steps == ("fp32", "bf16")
    assert candidate(catalogue.get("jina_v3"), sizes, True).steps == ("fp32",)
    assert candidate(catalogue.get("qodo"), sizes, False).steps == ("bf16",)
