"""What a loader says of a model before it downloads it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import Hub, hub_server
from huggingface_hub import close_session, constants
from safetensors.numpy import save_file

from models.catalogue import ModelSpec, load_catalogue
from models.errors import ModelError, ModelUnavailable, OverBudget
from service.residency.loader import LoadOverrides, ModelLoader
from service.settings import Settings


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that has qodo, and me/mine, of an architecture that cannot be served; nothing is on this machine."""
    with hub_server() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        folder = tmp_path / "source"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "mamba"}))
        save_file({"a": np.zeros(1, np.float32)}, folder / "model.safetensors")
        server.add("me/mine", folder)
        qodo = load_catalogue({}).get("qodo")
        server.add(str(qodo.repository), folder, qodo.revision)
        yield server
        close_session()


def fetched(spec: ModelSpec, budget_gb: float, **overrides: Any) -> tuple[list[str], ModelError]:
    """The steps that a fetch came to, and how it failed."""
    steps: list[str] = []
    loader = ModelLoader(Settings(device="cpu", memory={"budget_gb": budget_gb}), steps.append)
    with pytest.raises(ModelError) as refused:
        loader.fetch(spec, LoadOverrides(**overrides))
    return steps, refused.value


def test_an_architecture_that_is_not_supported_is_said_before_the_download(remote: Hub) -> None:
    spec = ModelSpec(id="mine", kind="generation", repository="me/mine")
    steps, refused = fetched(spec, 1)
    assert isinstance(refused, ModelUnavailable)
    assert "mamba" in refused.reason
    assert (steps, remote.asked("model.safetensors")) == ([], [])


def test_a_model_that_does_not_fit_is_said_before_the_download(remote: Hub) -> None:
    """In the precision that is asked for: qodo takes 3.1 GB in bf16, and in int8 nearly half of that."""
    spec = load_catalogue({}).get("qodo")
    steps, refused = fetched(spec, 2.5, dtype="bf16")
    assert isinstance(refused, OverBudget)
    assert refused.needed == pytest.approx(3.1e9, rel=0.05)
    assert (steps, remote.asked("model.safetensors")) == ([], [])
    steps, refused = fetched(spec, 2.5, quantization="int8")
    assert steps == ["downloading qodo"]
    assert isinstance(refused, ModelUnavailable)  # here its weights are not the catalogue's
