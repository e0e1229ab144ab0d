"""Loading: what is refused and why, what falls back, and which steps are reported."""

import gc
import json
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from own_entry import own
from safetensors.numpy import load_file, save_file

from models.catalogue import ModelSpec, load_catalogue
from models.encoders.base import TextOptions, Tokens, check_options, cosine_rows
from models.encoders.torch_encoder import TorchEncoder
from models.errors import (
    CorruptWeights,
    InvalidOption,
    ModelError,
    ModelUnavailable,
    OutOfDeviceMemory,
    SelfTestFailed,
)
from models.loading import device, loader, self_test
from models.loading.load_cache import LoadCache
from models.loading.loader import LoadOptions
from models.weights import hub


@pytest.fixture(scope="module")
def minilm() -> ModelSpec:
    return load_catalogue().get("minilm")


def copied(minilm: ModelSpec, folder: Path) -> ModelSpec:
    """The same model as a user's own entry, in a folder that a test may spoil."""
    shutil.copytree(hub.locate(minilm), folder)
    return own(folder=folder)


def test_loading_is_silent_and_reports_its_steps(minilm: ModelSpec, capfd: pytest.CaptureFixture[str]) -> None:
    steps: list[str] = []
    encoder = loader.load(minilm, LoadOptions("cpu", "fp32"), steps.append)
    assert capfd.readouterr() == ("", "")
    assert steps[0] == "locating the weights"
    assert steps[-1] == "testing the model in fp32 on cpu"
    assert (encoder.model, encoder.version, encoder.notes) == ("minilm", "53aa51172d14-fp32", ())
    assert (encoder.dimensions, encoder.max_tokens, encoder.device) == (384, 256, "cpu")


def test_corrupt_weights_are_refused_before_they_are_read(
    minilm: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = copied(minilm, tmp_path / "mine").model_copy(update={"sha256": minilm.sha256})
    with (tmp_path / "mine" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    monkeypatch.setattr(loader, "read_sentence_transformer", lambda *_: pytest.fail("was read"))
    with pytest.raises(CorruptWeights):
        loader.load(own, LoadOptions("cpu"))


def test_a_folder_that_cannot_be_read_is_unavailable(minilm: ModelSpec, tmp_path: Path) -> None:
    own = copied(minilm, tmp_path / "mine")
    (tmp_path / "mine" / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelUnavailable, match="cannot be read"):
        loader.load(own, LoadOptions("cpu"))


def edited(folder: Path, name: str, **changes: object) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def without_norms(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "LayerNorm" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def without_words(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: edited(folder, "config.json", num_hidden_layers=3), "one too many"),
        (lambda folder: edited(folder, "config.json", num_hidden_layers=8), "is missing"),
        (lambda folder: edited(folder, "config.json", hidden_size=192), "do not fit its config.json|cannot be read"),
        (lambda folder: edited(folder, "config.json", model_type="qwen2"), "do not fit its config.json|cannot be read"),
        (without_norms, "LayerNorm.* is missing"),
        (without_words, "knows no words|cannot be read"),
    ],
)
def test_what_does_not_fit_together_is_refused(minilm: ModelSpec, tmp_path: Path, spoil, why: str) -> None:
    own = copied(minilm, tmp_path / "mine")
    spoil(tmp_path / "mine")
    with pytest.raises(ModelUnavailable, match=why):
        loader.load(own, LoadOptions("cpu", "fp32"))


def test_an_entry_cannot_change_the_only_mask_that_a_model_has(minilm: ModelSpec) -> None:
    loader.load(minilm.model_copy(update={"causal": False}), LoadOptions("cpu", "fp32"))
    with pytest.raises(ModelUnavailable, match="`causal`"):
        loader.load(minilm.model_copy(update={"causal": True}), LoadOptions("cpu", "fp32"))


def test_no_text_is_longer_than_the_positions_that_a_model_has_learned(minilm: ModelSpec, tmp_path: Path) -> None:
    own = copied(minilm, tmp_path / "mine")
    edited(tmp_path / "mine", "sentence_bert_config.json", max_seq_length=4096)
    encoder = loader.load(own, LoadOptions("cpu", "fp32"))
    assert encoder.max_tokens == 512
    assert np.isfinite(encoder.encode(encoder.tokenize(["word " * 5000], TextOptions()))).all()


def test_too_few_tokens_to_test_a_model_with_are_an_error(minilm: ModelSpec) -> None:
    with pytest.raises(ModelUnavailable, match="max_tokens"):
        loader.load(minilm.model_copy(update={"max_tokens": 4}), LoadOptions("cpu", "fp32"))


def test_cached_vectors_are_of_weights_and_configuration(minilm: ModelSpec, tmp_path: Path) -> None:
    options = LoadOptions("cpu", "fp32", cache=LoadCache(tmp_path / "cache"))
    own = copied(minilm, tmp_path / "mine")
    loader.load(own, options)
    edited(tmp_path / "mine", "1_Pooling/config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    assert loader.load(own, options).version.startswith("53aa51172d14")


@pytest.mark.parametrize(
    ("field", "value"), [("dimensions", 512), ("pooling", "cls"), ("default_prompt", "no such prompt")]
)
def test_an_entry_that_contradicts_its_folder_is_refused(minilm: ModelSpec, field: str, value: object) -> None:
    with pytest.raises(ModelUnavailable, match=f"correct `{field}`"):
        loader.load(minilm.model_copy(update={field: value}), LoadOptions("cpu", "fp32"))


def test_an_entry_may_set_a_lower_token_limit(minilm: ModelSpec) -> None:
    encoder = loader.load(minilm.model_copy(update={"max_tokens": 16}), LoadOptions("cpu", "fp32"))
    (tokens,) = encoder.tokenize(["word " * 40], TextOptions())
    assert isinstance(tokens, Tokens)
    assert (len(tokens), tokens.truncated) == (16, True)


def test_auto_falls_back_to_fp32_where_bf16_is_too_inexact(minilm: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "pick_dtype", lambda wanted, _: "bf16" if wanted == "auto" else wanted)
    encoder = loader.load(minilm.model_copy(update={"min_cosine": 1.1}), LoadOptions("cpu", "auto"))
    assert encoder.dtype == "fp32"
    assert encoder.version == "53aa51172d14-fp32"
    assert "bf16" in encoder.notes[0]


def test_bf16_asked_for_by_name_does_not_fall_back(minilm: ModelSpec) -> None:
    with pytest.raises(SelfTestFailed, match="min_cosine"):
        loader.load(minilm.model_copy(update={"min_cosine": 1.1}), LoadOptions("cpu", "bf16"))


def test_quantised_weights_are_named_in_the_version_and_smaller(minilm: ModelSpec) -> None:
    plain = loader.load(minilm, LoadOptions("cpu", "fp32"))
    encoder = loader.load(minilm, LoadOptions("cpu", "fp32", "int8"))
    assert encoder.version == "53aa51172d14-fp32-int8"
    assert (encoder.dtype, encoder.quantization) == ("fp32", "int8")
    assert encoder.weight_bytes < 0.7 * plain.weight_bytes


def test_an_embedder_that_loses_too_much_is_refused_unless_its_entry_accepts_it(minilm: ModelSpec) -> None:
    with pytest.raises(SelfTestFailed, match="min_cosine"):
        loader.load(minilm, LoadOptions("cpu", "bf16", "int4"))
    accepted = minilm.model_copy(update={"quantization": "int4", "min_cosine": 0.9})
    assert loader.load(accepted, LoadOptions("cpu", "bf16")).version == "53aa51172d14-bf16-int4"


def test_pins_of_the_entry_do_not_hold_for_other_weights(minilm: ModelSpec, tmp_path: Path) -> None:
    shutil.copytree(hub.locate(minilm), tmp_path / "tuned")
    weights = load_file(tmp_path / "tuned" / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] *= 1.01
    save_file(weights, tmp_path / "tuned" / "model.safetensors", {"format": "pt"})
    encoder = loader.load(minilm, LoadOptions("cpu", "fp32", folder=tmp_path / "tuned"))
    assert not encoder.version.startswith("53aa51172d14")


def test_a_closed_model_is_freed_at_once(minilm: ModelSpec) -> None:
    encoder = loader.load(minilm, LoadOptions("cpu", "fp32"))
    assert isinstance(encoder, TorchEncoder)
    transformer = weakref.ref(encoder._first)
    gc.disable()
    try:
        encoder.close()
        del encoder
        assert transformer() is None
    finally:
        gc.enable()


def test_wrong_vectors_fail_the_self_test(minilm: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(self: TorchEncoder, batch: list[Tokens]) -> np.ndarray:
        return np.roll(forward(self, batch), 1, axis=0)

    forward = TorchEncoder.encode
    monkeypatch.setattr(TorchEncoder, "encode", shifted)
    with pytest.raises(SelfTestFailed) as caught:
        loader.load(minilm, LoadOptions("cpu", "fp32"))
    assert caught.value.cosine < 0.9
    assert caught.value.reference == "its golden vectors"
    assert "choose another model" in str(caught.value)


def test_vectors_of_another_length_than_the_references_are_named(
    minilm: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a sentence-transformers configuration with `truncate_dim` makes them."""
    monkeypatch.setattr(
        self_test, "reference_vectors", lambda *_: (np.ones((len(self_test.TEST_TEXTS), 32), np.float32), "another")
    )
    with pytest.raises(ModelUnavailable, match="its vectors have 384 values here and 32 in another; "):
        loader.load(minilm, LoadOptions("cpu", "fp32"))


def test_the_golden_file_can_be_made_again(tmp_path: Path, minilm: ModelSpec) -> None:
    digest = minilm.sha256["model.safetensors"]
    stored = self_test.golden_vectors(self_test.GOLDEN / "minilm.json", digest)
    self_test.write_golden("minilm", tmp_path / "minilm.json")
    made = self_test.golden_vectors(tmp_path / "minilm.json", digest)
    assert stored is not None
    assert made is not None
    assert cosine_rows(stored, made).min() >= 0.99999
    assert self_test.golden_vectors(tmp_path / "minilm.json", "0" * 64) is None


def test_out_of_memory_on_the_device_is_an_error_of_ours(minilm: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = loader.load(minilm, LoadOptions("cpu", "fp32"))
    for failure in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: 9 bytes")):

        def fail(*_: object, failure: Exception = failure) -> None:
            raise failure

        monkeypatch.setattr(encoder, "_first", fail)
        with pytest.raises(OutOfDeviceMemory):
            encoder.encode([Tokens([101, 102])])


def test_options_are_checked_before_any_work(minilm: ModelSpec) -> None:
    encoder = loader.load(minilm, LoadOptions("cpu", "fp32"))
    check_options(encoder, TextOptions(prompt_name="query"), 384)
    check_options(encoder, TextOptions(prompt="any", prompt_name="no such"), None)
    for dimensions in (0, -1, 385):
        with pytest.raises(InvalidOption, match="from 1 to 384"):
            check_options(encoder, TextOptions(), dimensions)
    with pytest.raises(InvalidOption, match="unknown prompt"):
        check_options(encoder, TextOptions(prompt_name="no such"), None)


def test_each_thread_keeps_its_number_of_compute_threads() -> None:
    with ThreadPoolExecutor(1) as device_thread, ThreadPoolExecutor(1) as loader_thread:
        device_thread.submit(device.configure_threads, 2).result()
        loader_thread.submit(device.configure_threads, 1).result()
        assert device_thread.submit(torch.get_num_threads).result() == 2
        assert loader_thread.submit(torch.get_num_threads).result() == 1
    torch.set_num_threads(device.default_threads())


def test_devices() -> None:
    assert device.pick_device("cpu").type == "cpu"
    assert device.pick_dtype("fp32", torch.device("cpu")) == "fp32"
    assert device.default_threads() >= 1
    report = device.describe(torch.device("cpu"))
    assert report.device == "cpu"
    assert report.bf16 == device.supports_bf16(torch.device("cpu"))
    if not torch.cuda.is_available():
        assert device.pick_device("auto").type == "cpu"
        with pytest.raises(ModelError, match="choose cpu"):
            device.pick_device("cuda")
