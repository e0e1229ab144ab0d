"""Footprints against the sizes that the models' authors publish, and the arithmetic of what fits where."""

import json
import re
import tomllib
from pathlib import Path

import pytest
import typer

from bench.random_generators import write_codellama, write_starcoder
from bench.random_models import write_qodo
from models.catalogue import load_catalogue
from models.errors import BadEntry, UnknownArchitecture
from models.loading.footprint import Footprint, Precision, footprint, model_config
from models.loading.plan import Candidate, Fate, Plan, Reserve, candidate, native, plan
from service.cli.models_info import print_info
from service.cli.models_plan import PlanOptions, parse_size, print_plan, settings_lines
from service.config import BadSettings, Settings
from service.residency.loader import LoadOverrides, ModelLoader

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


def test_what_is_too_large_evicts_nobody() -> None:
    planned = plan([model("a", 2), model("huge", 40, True, ALL)], 4 * GB, NO_RESERVE)
    assert outcome(planned) == {"a": ("bf16", "fits"), "huge": ("bf16", "too large")}


def test_what_eviction_made_needless_is_taken_back() -> None:
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


def test_the_whole_catalogue_fits_one_16_gb_card(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(Settings(), PlanOptions("16GB"), as_json=True)
    document = json.loads(capsys.readouterr().out)
    models = {placed["model"]: placed for placed in document["models"]}
    assert {placed["result"] for placed in models.values()} == {"fits"}
    assert document["used_bytes"] <= 16 * GB
    assert models["qodo"]["precision"] == "bf16"
    assert models["codellama_7b"]["precision"] == "int4"
    assert '[catalogue.codellama_7b]\nquantization = "int4"' in document["settings"]


def test_an_embedding_model_is_reduced_only_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for reduce, result in (((), "too large"), (("qodo",), "fits")):
        print_plan(Settings(), PlanOptions("4GB", ("qodo",), reduce), as_json=True)
        assert json.loads(capsys.readouterr().out)["models"][0]["result"] == result


@pytest.mark.parametrize(
    ("model", "told"),
    [("jina_v3", "served by ONNX graphs"), ("minilm", "none of the models to be planned")],
)
def test_what_cannot_be_reduced_is_refused(model: str, told: str) -> None:
    with pytest.raises(typer.BadParameter, match=told):
        print_plan(Settings(), PlanOptions("4GB", ("qodo", "jina_v3"), (model,)), as_json=True)


@pytest.mark.parametrize(("budget", "working"), [("1GB", None), ("2GB", "2GB")])
def test_a_budget_must_leave_room_beside_what_is_kept_free(budget: str, working: str | None) -> None:
    with pytest.raises(BadSettings, match="kept free for work"):
        print_plan(Settings(), PlanOptions(budget, working=working), as_json=True)


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(Settings(), PlanOptions("16GB"), as_json=False)
    out, err = capsys.readouterr()
    assert "int4 (reduced)" in out
    assert "of 16.00 GB" in out
    assert err == ""


def test_a_model_of_unknown_size_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(catalogue={"mine": {"kind": "generation", "folder": "/nowhere"}})
    print_plan(settings, PlanOptions("16GB", ("minilm", "mine")), as_json=False)
    assert "left out: the size of model 'mine' is not known: there is no folder /nowhere" in capsys.readouterr().err


def test_the_settings_carry_the_plan_out() -> None:
    planned = plan([model("writes", 4, True, ALL), model("embeds", 8, False, ALL)], 5 * GB, NO_RESERVE)
    lines = settings_lines(planned)
    assert "budget_gb = 5.00" in lines
    assert '[catalogue.writes]\nquantization = "int4"' in lines
    assert "min_cosine" in lines.partition("[catalogue.embeds]")[2]
    assert settings_lines(plan([], GB)) == ""


def test_the_loader_expects_what_the_plan_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = write_codellama(tmp_path / "large", hidden=256, intermediate=1024, layers=4, vocab=4096, dtype="bfloat16")
    small = write_starcoder(tmp_path / "small", hidden=256, dtype="bfloat16")
    mine = {
        name: {"kind": "generation", "folder": str(folder), "dtype": "bf16"}
        for name, folder in {"large": large, "small": small}.items()
    }
    print_plan(Settings(catalogue=mine), PlanOptions("60MB", tuple(mine), working="1MB"), as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert {placed["result"] for placed in document["models"]} == {"fits"}
    printed = tomllib.loads(document["settings"])
    entries = {name: {**fields, **printed["catalogue"][name]} for name, fields in mine.items()}
    model_loader = ModelLoader(Settings(memory=printed["memory"], catalogue=entries, device="cpu"))
    catalogue = load_catalogue(entries)
    expected = {
        name: model_loader.expected(spec, model_loader.options(spec, LoadOverrides()))[1]
        for name, spec in ((name, catalogue.get(name)) for name in mine)
    }
    assert sum(expected.values()) <= printed["memory"]["budget_gb"] * GB
    for placed in document["models"]:
        assert expected[placed["model"]] == pytest.approx(placed["weight_bytes"] + placed["kv_bytes"], rel=0.03)


def test_only_what_generates_has_keys_and_values() -> None:
    with pytest.raises(BadEntry, match="kv_gb is for generation models"):
        load_catalogue({"mine": {"kind": "embedding", "folder": "x", "kv_gb": 1}})


def test_info_tells_nothing_of_vectors_where_there_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    for model, told in (("tiny_coder", False), ("minilm", True)):
        print_info(Settings(), model, as_json=True)
        facts = json.loads(capsys.readouterr().out)
        assert [name in facts for name in ("normalize", "min_cosine")] == [told, told]
    print_info(Settings(), "tiny_coder", as_json=False)
    told = capsys.readouterr().out
    assert "min_cosine" not in told
    assert re.search("^served +yes$", told, re.MULTILINE)


def test_a_folder_without_an_entry_is_told_of_as_if_it_had_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    print_info(Settings(), str(tmp_path), as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["source"], facts["support"]["served"]) == ("generation", "folder", False)
    assert "s_aux" in facts["support"]["reason"]


def test_sizes_are_read_with_their_units() -> None:
    sizes = {"16GB": 16 * GB, "15.5 GiB": 15.5 * 2**30, "800mb": 800 * 10**6, "1TB": 10**12}
    assert {text: parse_size(text, "budget") for text in sizes} == sizes
    for text in ("16", "GB", "-1GB", "0GB", "16 gigabytes", "nanGB", "9" * 400 + "GB"):
        with pytest.raises(BadSettings, match="budget"):
            parse_size(text, "budget")
