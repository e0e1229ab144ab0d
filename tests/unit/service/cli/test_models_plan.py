"""`mlbus models plan`: what it prints, and that the settings it prints carry the plan out."""

import json
import tomllib
from pathlib import Path

import pytest
import typer

from bench.random_generators import write_codellama, write_starcoder
from models.catalogue import load_catalogue
from models.loading.footprint import Footprint
from models.loading.plan import STEPS, Candidate, Reserve, plan
from service.cli.models_plan import parse_size, settings_lines
from service.cli.models_plan import plan as print_plan
from service.residency.loader import LoadOverrides, ModelLoader
from service.settings import BadSettings, Settings
from service.settings.toml import as_toml

GB = 10**9


def test_the_whole_catalogue_fits_one_16_gb_card(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(budget="16GB", as_json=True)
    document = json.loads(capsys.readouterr().out)
    models = {placed["model"]: placed for placed in document["models"]}
    assert {placed["result"] for placed in models.values()} == {"fits"}
    assert document["used_bytes"] <= 16 * GB
    assert models["qodo"]["precision"] == "bf16"
    assert models["codellama_7b"]["precision"] == "int4"
    assert '[catalogue.codellama_7b]\nquantization = "int4"' in document["settings"]


def test_an_embedding_model_is_reduced_only_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for reduce, result in (([], "too large"), (["qodo"], "fits")):
        print_plan(["qodo"], "4GB", reduce, as_json=True)
        assert json.loads(capsys.readouterr().out)["models"][0]["result"] == result


@pytest.mark.parametrize(
    ("model", "told"),
    [("jina_v3", "served by ONNX graphs"), ("minilm", "none of the models to be planned")],
)
def test_what_cannot_be_reduced_is_refused(model: str, told: str) -> None:
    with pytest.raises(typer.BadParameter, match=told):
        print_plan(["qodo", "jina_v3"], "4GB", [model], as_json=True)


@pytest.mark.parametrize(("budget", "working"), [("1GB", None), ("2GB", "2GB")])
def test_a_budget_must_leave_room_beside_what_is_kept_free(budget: str, working: str | None) -> None:
    with pytest.raises(BadSettings, match="kept free for work"):
        print_plan(budget=budget, working=working, as_json=True)


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(budget="16GB")
    out, err = capsys.readouterr()
    assert "int4 (reduced)" in out
    assert "of 16.00 GB" in out
    assert err == ""


def test_a_model_of_unknown_size_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mlbus.toml"
    config.write_text('[catalogue.mine]\nkind = "generation"\nfolder = "/nowhere"\n')
    print_plan(["minilm", "mine"], "16GB", config=config)
    assert "left out: the size of model 'mine' is not known: there is no folder /nowhere" in capsys.readouterr().err


def test_the_settings_carry_the_plan_out() -> None:
    candidates = [
        Candidate(Footprint(model, 0, {"bf16": size, "int8": size // 2, "int4": size // 4}), generates, STEPS[1:])
        for model, size, generates in (("writes", 4 * GB, True), ("embeds", 8 * GB, False))
    ]
    planned = plan(candidates, 5 * GB, Reserve(working_bytes=0, kv_tokens=0))
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
    config = tmp_path / "mlbus.toml"
    config.write_text(as_toml(Settings(catalogue=mine)))
    print_plan([*mine], "60MB", working="1MB", config=config, as_json=True)
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


def test_sizes_are_read_with_their_units() -> None:
    sizes = {"16GB": 16 * GB, "15.5 GiB": 15.5 * 2**30, "800mb": 800 * 10**6, "1TB": 10**12}
    assert {text: parse_size(text, "budget") for text in sizes} == sizes
    for text in ("16", "GB", "-1GB", "0GB", "16 gigabytes", "nanGB", "9" * 400 + "GB"):
        with pytest.raises(BadSettings, match="budget"):
            parse_size(text, "budget")
