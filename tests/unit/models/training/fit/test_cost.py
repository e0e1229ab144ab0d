"""What can be trained, and about what that takes."""

from pathlib import Path

import pytest
from training_runs import of_folder

from bench.random_models import write_qodo
from models.catalogue import load_catalogue
from models.training.errors import CannotTrain
from models.training.fit.cost import check_trainable, training_bytes
from models.training.run import TrainingOptions
from models.weights.hub import locate


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qodo(tmp_path_factory.mktemp("base"))


REFUSED = {
    "generation": (load_catalogue().get("starcoder_1b"), "only embedding models"),
    "onnx": (load_catalogue().get("jina_v3"), "torch form"),
    "missing": (load_catalogue().get("minilm"), "mlbus models pull minilm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_models_that_cannot_be_trained_are_refused_with_the_next_step(case: str, tmp_path: Path) -> None:
    entry, message = REFUSED[case]
    with pytest.raises(CannotTrain, match=message):
        check_trainable(entry, tmp_path / "nowhere")


def test_pickles_and_damaged_weights_are_refused(base: Path, tmp_path: Path) -> None:
    folder = write_qodo(tmp_path / "model", shards=1)
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CannotTrain, match="cannot be read"):
        check_trainable(of_folder(folder), folder)
    (folder / "model.safetensors.index.json").unlink()
    file.rename(folder / "pytorch_model.bin")
    with pytest.raises(CannotTrain, match="pickle"):
        check_trainable(of_folder(folder), folder)
    check_trainable(of_folder(base, quantization="int8"), base)


def test_training_bytes_grow_with_the_options(base: Path) -> None:
    entry = load_catalogue().get("minilm")
    folder = locate(entry)
    device, full = training_bytes(entry, folder, TrainingOptions(method="full"))
    assert device in ("cpu", "cuda:0")
    assert full > 16 * 22_700_000
    assert training_bytes(entry, folder, TrainingOptions(method="lora"))[1] < full
    assert training_bytes(entry, folder, TrainingOptions(batch_size=256))[1] > full
    assert training_bytes(entry, folder, TrainingOptions(batch_size=256, micro_batch=32))[1] == full
