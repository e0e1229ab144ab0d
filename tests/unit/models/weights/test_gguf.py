"""A GGUF file becomes a folder of safetensors: once, complete, and with a clear error otherwise."""

from pathlib import Path

import pytest
from gguf_model import SMOLLM2, SOURCE, cache_folder, converted_folder

from models.catalogue import ModelSpec
from models.errors import CorruptWeights, ModelUnavailable
from models.generation.load import read_generation_config
from models.loading.footprint import footprint
from models.loading.load_cache import LoadCache
from models.loading.loader import LoadOptions, located
from models.weights import gguf, hub, model_files


def of_folder(folder: Path) -> ModelSpec:
    """The same model from a folder of one's own, where nothing is pinned."""
    return SMOLLM2.model_copy(update={"folder": folder, "sha256": {}})


def test_the_file_of_the_package_is_there_and_the_right_one() -> None:
    folder = hub.locate(SMOLLM2)
    assert hub.is_present(SMOLLM2)
    assert model_files.weight_files(SMOLLM2, folder) == [SMOLLM2.gguf]
    assert model_files.check_weights(SMOLLM2, folder) == SMOLLM2.sha256[SOURCE.name]


def test_it_is_converted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = converted_folder()
    monkeypatch.setattr(gguf, "_make", lambda *_: pytest.fail("converted again"))
    spec, again = located(SMOLLM2, LoadOptions(cache=LoadCache(cache_folder())))
    assert (again, spec.gguf, spec.sha256) == (folder, None, {})
    assert model_files.weight_files(spec, folder) == ["model.safetensors"]
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


def test_a_damaged_conversion_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gguf" / f"{'a' * 16}-{gguf.FORMAT}").mkdir(parents=True)
    made: list[Path] = []
    monkeypatch.setattr(gguf, "_make", lambda _spec, _source, folder: made.append(folder))
    steps: list[str] = []
    assert gguf.converted(SMOLLM2, SOURCE, "a" * 64, tmp_path, steps.append) in made
    assert steps == ["converting its GGUF file, once"]


def test_the_footprint_is_that_of_the_converted_weights() -> None:
    stored = (converted_folder() / "model.safetensors").stat().st_size
    assert footprint(SMOLLM2).sizes["bf16"] == pytest.approx(stored, rel=0.01)


def test_the_entry_states_the_sampling_defaults_that_the_folder_does_not() -> None:
    stated = read_generation_config(SMOLLM2, converted_folder())
    chosen = SMOLLM2.sampling
    assert (stated.temperature, stated.top_p) == (chosen.temperature, chosen.top_p)
    assert stated.temperature is not None


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / SOURCE.name).write_bytes(b"GGUF")
    with pytest.raises(CorruptWeights, match=r"SmolLM2-135M-Instruct\.Q4_1\.gguf .* expected b179c9523d0e"):
        located(SMOLLM2.model_copy(update={"package": None, "folder": tmp_path}), LoadOptions())


@pytest.mark.parametrize("size", [0, 4, 3_000_000])
@pytest.mark.slow
def test_a_file_that_is_cut_short_is_one_clear_line(tmp_path: Path, size: int) -> None:
    with SOURCE.open("rb") as whole:
        (tmp_path / SOURCE.name).write_bytes(whole.read(size))
    with pytest.raises(ModelUnavailable) as caught:
        located(of_folder(tmp_path), LoadOptions(cache=LoadCache(tmp_path / "cache")))
    assert "SmolLM2-135M-Instruct.Q4_1.gguf cannot be converted, " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_without_a_data_directory_nothing_is_converted(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no data directory"):
        located(SMOLLM2, LoadOptions())
    (tmp_path / "gguf").write_text("a file where the folder should be")
    with pytest.raises(ModelUnavailable, match=r"cannot be converted into .*gguf: "):
        gguf.converted(SMOLLM2, SOURCE, "a" * 64, tmp_path)


def test_without_its_package_it_is_not_present() -> None:
    missing = SMOLLM2.model_copy(update={"package": "no_such_package", "repository": None})
    assert not hub.is_present(missing)
    with pytest.raises(ModelUnavailable, match="install no_such_package"):
        hub.locate(missing)
