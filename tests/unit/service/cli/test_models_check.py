"""`mlbus models check`: what it prints."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench.random_models import write_qodo
from models.checking import precision
from models.errors import ModelUnavailable, UnknownModel
from service.cli.models_check import check
from service.settings import Settings
from service.settings.toml import as_toml


def settings_file(folder: Path, catalogue: dict[str, Any] | None = None) -> Path:
    path = folder / "mlbus.toml"
    path.write_text(as_toml(Settings(device="cpu", dtype="fp32", data_dir=folder, catalogue=catalogue or {})))
    return path


@pytest.mark.slow
def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings_file(tmp_path)
    check("tiny_coder", config)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["precision", "weights", "perplexity", "greedy", "sample"]
    names = [line.partition("  ")[0] for line in lines if line.startswith(("fp", "bf", "int"))]
    assert names == ["fp32 (in the catalogue)", "bf16", "int8", "int4"]
    check("minilm", config, as_json=True)
    found = json.loads(capsys.readouterr().out)
    (row,) = found["settings"]
    assert (found["queries"], row["causal"], row["catalogue"], row["best"]) == (36, False, True, True)
    assert row["ndcg_at_10"] > 0.7


def test_a_better_setting_is_printed_as_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_qodo(tmp_path / "model")
    for causal in (False, True):
        entry = {"kind": "embedding", "folder": str(tmp_path / "model"), "causal": causal}
        check("mine", settings_file(tmp_path, {"mine": entry}))
        printed = capsys.readouterr().out
        assert ("mine ranks best as the catalogue has it" in printed) != ("[catalogue.mine]\ncausal = " in printed)
        assert len(re.findall(r"^(both ways|causal).*0\.\d{3} ", printed, re.M)) == 4


def test_a_missing_model_is_an_error_with_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for model, error in ("qodo", ModelUnavailable), ("codellama_7b", ModelUnavailable), ("nobody", UnknownModel):
        with pytest.raises(error, match=f"mlbus models pull {model}|unknown model"):
            check(model, settings_file(tmp_path))


def test_code_in_a_sample_is_printed_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        precision.PrecisionResult("fp32", "fp32", 1000, 2.0, "text[i]"),
        precision.PrecisionResult("int8", problem="not [so]"),
    ]
    monkeypatch.setattr(precision, "measure", lambda load: found)
    check("tiny_coder", settings_file(tmp_path))
    printed = capsys.readouterr().out
    assert "text[i]" in printed
    assert "not [so]" in printed
    assert "\\" not in printed
