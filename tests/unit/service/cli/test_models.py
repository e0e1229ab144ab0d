"""`mlbus models info`: what it prints of an entry, and of a folder that has none."""

import json
import re
from pathlib import Path

import pytest

from service.cli.models import info


def test_info_of_a_generation_model_has_nothing_on_vectors(capsys: pytest.CaptureFixture[str]) -> None:
    for model, told in (("tiny_coder", False), ("minilm", True)):
        info(model, as_json=True)
        facts = json.loads(capsys.readouterr().out)
        assert [name in facts for name in ("normalize", "min_cosine")] == [told, told]
    info("tiny_coder")
    told = capsys.readouterr().out
    assert "min_cosine" not in told
    assert re.search("^served +yes$", told, re.MULTILINE)


def test_info_of_a_folder_without_an_entry(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt_oss"}')
    info(str(tmp_path), as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["source"], facts["support"]["served"]) == ("generation", "folder", False)
    assert "s_aux" in facts["support"]["reason"]
