"""Loading a generation model: its facts, what is refused and why, what falls back, that it is silent."""

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
)

from bench.random_generators import write_codellama, write_llama, write_starcoder
from models.catalogue import ModelSpec, SamplingDefaults, load_catalogue
from models.errors import ModelUnavailable
from models.generation import load, load_checks
from models.generation.architecture import context_of, kv_shape, served_config
from models.generation.errors import NonFiniteLogits
from models.loading import loader
from models.loading.loader import LoadOptions, expected_bytes, load_generator
from models.weights.model_files import weight_files

FP32 = LoadOptions("cpu", "fp32")


@pytest.fixture(scope="module")
def codellama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_codellama(tmp_path_factory.mktemp("codellama"), shards=2)


@pytest.fixture(scope="module")
def starcoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_starcoder(tmp_path_factory.mktemp("starcoder"))


@pytest.fixture
def own(codellama: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(codellama, tmp_path / "own"))


def spec_of(folder: Path, **fields: object) -> ModelSpec:
    return load_catalogue({"mine": {"kind": "generation", "folder": str(folder), **fields}}).get("mine")


def edited(folder: Path, name: str, **changes: object) -> None:
    file = folder / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def reason_of(folder: Path, options: LoadOptions = FP32, **fields: object) -> str:
    with pytest.raises(ModelUnavailable) as caught:
        load_generator(spec_of(folder, **fields), options)
    return caught.value.reason


def test_loading_is_silent_and_reports_its_steps(codellama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    steps: list[str] = []
    load_generator(spec_of(codellama), LoadOptions("cpu", "bf16", "int8"), steps.append)
    assert capfd.readouterr() == ("", "")
    assert steps[0] == "locating the weights"
    assert steps[-2:] == ["making it int8", "testing the model in bf16 on cpu"]


def test_facts(codellama: Path, starcoder: Path) -> None:
    llama, coder = (load_generator(spec_of(folder), FP32) for folder in (codellama, starcoder))
    assert (llama.facts.model, llama.facts.device, llama.facts.dtype, llama.facts.quantization, llama.facts.notes) == (
        "mine",
        "cpu",
        "fp32",
        None,
        (),
    )
    assert llama.facts.version.endswith("-fp32")
    assert llama.facts.version != coder.facts.version
    assert (llama.facts.max_tokens, coder.facts.max_tokens) == (16384, 8192)
    assert (llama.stop_ids, coder.stop_ids) == ({2}, {0})
    assert (llama.kv_shape.heads, coder.kv_shape.heads) == (4, 1)
    assert llama.kv_shape.token_bytes == 2 * 2 * 4 * 16 * 4
    assert llama.facts.vocabulary == llama.network.config.vocab_size
    assert (llama.facts.defaults, llama.network.training) == (SamplingDefaults(), False)


def test_a_quantised_model_notes_its_divergence(codellama: Path) -> None:
    model = load_generator(spec_of(codellama, quantization="int4"), LoadOptions("cpu", "bf16"))
    assert model.facts.version.endswith("-bf16-int4")
    assert model.facts.notes[0].startswith("as int4 its probabilities are 0.")


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_a_closed_model_keeps_no_weights(codellama: Path, quantization: str | None) -> None:
    model = load_generator(spec_of(codellama), LoadOptions("cpu", "bf16", quantization))
    held = [weakref.ref(held) for held in (*model.network.parameters(), *model.network.buffers())]
    assert len(held) > 20
    model.close()
    gc.collect()
    assert not [tensor.shape for reference in held if (tensor := reference()) is not None]


def test_an_entry_may_set_a_shorter_context(codellama: Path) -> None:
    assert load_generator(spec_of(codellama, max_tokens=100), FP32).facts.max_tokens == 100
    assert load_generator(spec_of(codellama, max_tokens=99999), FP32).facts.max_tokens == 16384
    assert load_generator(spec_of(codellama, max_tokens=8), FP32).facts.max_tokens == 8
    assert "too short for any text" in reason_of(codellama, max_tokens=1)


def test_stop_ids_come_from_every_file(own: Path) -> None:
    edited(own, "generation_config.json", eos_token_id=[5, 7, 10**6])
    edited(own, "config.json", eos_token_id=6)
    assert load_generator(spec_of(own), FP32).stop_ids == {2, 5, 6, 7}


def test_sampling_defaults_need_do_sample(own: Path) -> None:
    edited(own, "generation_config.json", temperature=0.6, top_p=0.9, top_k=50)
    assert load_generator(spec_of(own), FP32).facts.defaults == SamplingDefaults()
    edited(own, "generation_config.json", do_sample=True)
    assert load_generator(spec_of(own), FP32).facts.defaults == SamplingDefaults(temperature=0.6, top_k=50, top_p=0.9)


def test_a_folder_without_a_generation_config_is_served(own: Path) -> None:
    (own / "generation_config.json").unlink()
    model = load_generator(spec_of(own), FP32)
    assert (model.stop_ids, model.facts.defaults) == ({2}, SamplingDefaults())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "generation_config.json in .* cannot be used, Invalid JSON"),
        ("[]", "cannot be used"),
        ('{"do_sample": true, "temperature": "hot"}', "cannot be used, temperature: "),
        ('{"do_sample": true, "top_p": 0}', "cannot be used, top_p: "),
        ('{"eos_token_id": "</s>"}', "cannot be used, eos_token_id"),
    ],
)
def test_a_damaged_generation_config_is_refused(own: Path, text: str, message: str) -> None:
    (own / "generation_config.json").write_text(text)
    with pytest.raises(ModelUnavailable, match=message):
        load_generator(spec_of(own), FP32)


def test_unused_fields_of_a_generation_config_are_ignored(own: Path) -> None:
    """A penalty is used without sampling too."""
    edited(own, "generation_config.json", temperature=5.0, top_p=0, do_sample=False, repetition_penalty=1.1)
    assert load_generator(spec_of(own), FP32).facts.defaults == SamplingDefaults(repetition_penalty=1.1)


def without(folder: Path, part: str) -> None:
    for file in folder.glob("*.safetensors"):
        kept = {name: tensor for name, tensor in load_file(file).items() if part not in name}
        save_file(kept, file, {"format": "pt"})


def beside(folder: Path, name: str) -> None:
    file = next(folder.glob("*.safetensors"))
    save_file({**load_file(file), name: torch.zeros(4)}, file, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    edited(folder, index.name, weight_map={**weight_map, name: file.name})


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: without(folder, "layers.1.self_attn.q_proj"), "q_proj.weight is missing"),
        (lambda folder: without(folder, "lm_head"), "lm_head.weight is missing"),
        (lambda folder: edited(folder, "config.json", num_hidden_layers=1), "one too many"),
        (lambda folder: edited(folder, "config.json", num_hidden_layers=3), "is missing"),
        (lambda folder: edited(folder, "config.json", hidden_size=128, head_dim=16), "do not fit|cannot be read"),
        (as_pickle, "is a pickle"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "adapters are not loaded"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "is not in"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: edited(folder, "config.json", model_type="nope"), "config.json"),
        (
            lambda folder: edited(folder, "config.json", quantization_config={"quant_method": "gptq"}),
            "quantised already",
        ),
    ],
)
def test_folders_that_do_not_fit_together_are_refused(own: Path, spoil, why: str) -> None:
    spoil(own)
    with pytest.raises(ModelUnavailable, match=why):
        load_generator(spec_of(own), FP32)


@pytest.mark.parametrize("fields", [{"vocab_size": 10**8}, {"num_hidden_layers": 10**7}, {"intermediate_size": 10**9}])
def test_a_config_of_a_larger_model_costs_no_memory(
    own: Path, fields: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **options: object) -> None:
        pytest.fail("it was read")

    edited(own, "config.json", **fields)
    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", never)
    assert "do not fit its config.json" in reason_of(own)


def test_a_model_does_not_refer_to_its_file(tmp_path: Path) -> None:
    folder = write_codellama(tmp_path / "bf16", dtype="bfloat16")
    model = load_generator(spec_of(folder), LoadOptions("cpu", "bf16"))
    for file in folder.glob("*.safetensors"):
        with file.open("r+b") as opened:
            opened.write(bytes(file.stat().st_size))
    scores = load_checks.model_logits("mine", model.network, model.test_ids)[-1]
    assert torch.equal(scores, model.test_logits)


def test_files_that_are_not_read_do_not_count(own: Path) -> None:
    spec = spec_of(own)
    files, expected = weight_files(spec, own), expected_bytes(spec, FP32)
    (own / "original").mkdir()
    for name in ("consolidated.safetensors", "original/model.safetensors"):
        save_file({"a": torch.zeros(100)}, own / name)
    assert (weight_files(spec, own), expected_bytes(spec, FP32)) == (files, expected)
    (own / "consolidated.safetensors.index.json").write_text('{"weight_map": {"a": "consolidated-1.safetensors"}}')
    assert weight_files(spec, own) == files
    save_file({"a": torch.zeros(100)}, own / "model.safetensors")
    assert weight_files(spec, own) == ["model.safetensors"]  # what transformers reads where there are both


@pytest.mark.parametrize("write", [write_codellama, write_llama])
def test_a_tokeniser_that_loses_text_is_refused(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    """transformers makes one without words of nothing, and a byte-level one of SentencePiece's for some classes."""
    folder = write(tmp_path / "model")
    sentencepiece = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").unlink()
    message = "does not give back what it reads; use a copy with its tokenizer.json"
    assert message in reason_of(folder)
    (folder / "tokenizer.json").write_text(sentencepiece)
    edited(folder, "tokenizer_config.json", tokenizer_class="GPTNeoXTokenizer")
    assert message in reason_of(folder)


def test_tokens_without_weights_are_noted(tmp_path: Path) -> None:
    """CodeLlama 7b-Python is so: its tokeniser's class adds the tokens of gaps."""
    folder = write_llama(tmp_path / "python")
    edited(folder, "tokenizer_config.json", tokenizer_class="CodeLlamaTokenizer")
    model = load_generator(spec_of(folder), FP32)
    assert (model.prompts.fill, model.facts.notes) == (False, ("4 tokens of its tokeniser have no weights",))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_mostly_unquantizable_model_is_refused(starcoder: Path, tmp_path: Path, quantization: str) -> None:
    """GPT-2's layers are of a kind of its own."""
    folder = Path(shutil.copytree(starcoder, tmp_path / "gpt2", ignore=shutil.ignore_patterns("model*")))
    rows = json.loads((starcoder / "config.json").read_text())["vocab_size"]
    GPT2LMHeadModel(GPT2Config(n_embd=64, n_head=4, n_layer=2, vocab_size=rows)).save_pretrained(folder)
    assert "of its weights are in layers that cannot be" in reason_of(folder, LoadOptions("cpu", "bf16", quantization))


def test_unquantised_matrices_are_noted(codellama: Path) -> None:
    note = load_generator(spec_of(codellama), LoadOptions("cpu", "bf16", "int4")).facts.notes[1]
    assert note == "1 of its matrices, 34% of their weights, are not int4"


def test_quantised_layers_are_tested_with_one_row_and_with_many() -> None:
    probes = load_checks.ids_of_few_and_many_rows([5, 6, 7], 1000)
    assert ([len(ids) for ids in probes], set(probes[2])) == ([1, 3, load_checks.MANY_TOKENS], {5, 6, 7})
    assert [len(ids) for ids in load_checks.ids_of_few_and_many_rows([5, 6, 7], 8)] == [1, 3, 8]
    near, far = torch.zeros(2, 4), torch.tensor([[99.0, 0, 0, 0]] * 2)
    with pytest.raises(ModelUnavailable, match="choose a higher precision"):
        load_checks.require_near("mine", "int8", [near, near, near], [near, near, far])


def test_a_negative_context_is_refused(own: Path) -> None:
    edited(own, "config.json", max_position_embeddings=-1)
    assert "give `max_tokens`" in reason_of(own)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.0.attn.bias"])
def test_stale_buffers_are_ignored(own: Path, name: str) -> None:
    beside(own, name)
    load_generator(spec_of(own), FP32)


LONGROPE = Phi3Config(
    hidden_size=64,
    num_attention_heads=4,
    max_position_embeddings=512,
    original_max_position_embeddings=64,
    pad_token_id=0,
    rope_parameters={
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 64,
        "factor": 8.0,
    },
)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (MambaConfig(), "a state instead of keys and values"),
        (GPT2Config(add_cross_attention=True), "cross attention"),
        (LONGROPE, "`max_tokens = 64`"),
    ],
)
def test_architectures_that_the_engine_cannot_run(config: PretrainedConfig, why: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match=why):
        served_config(spec_of(tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"model_type": "bloom"}, "cannot be exchanged"),
        ({"model_type": "t5"}, "from text alone"),
        ({"model_type": "deepseek_v3"}, "not of one width"),
        ({"model_type": "gpt_oss"}, "does not compute s_aux"),
        ({"model_type": "bert"}, "neither causal nor windows"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "depend on later tokens"),
        ({"model_type": "llama4_text"}, "neither the whole text nor a window"),
        ({"model_type": "diffllama"}, "not all of its layers keep keys and values"),
        ({"model_type": "gemma4_text"}, "does not say what keys and values"),
    ],
)
def test_configurations_that_the_engine_cannot_run(fields: dict[str, object], why: str, tmp_path: Path) -> None:
    """By the configuration alone: there are no weights."""
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ModelUnavailable, match=f"its architecture, {fields['model_type']}, is not served: .*{why}"):
        served_config(spec_of(tmp_path), tmp_path)


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text", "mistral", "mixtral", "glm", "phi", "phi3", "qwen3_moe"])
def test_architectures_that_the_engine_can_run_are_known_without_weights(kind: str, tmp_path: Path) -> None:
    """In the sizes that transformers gives them, which no test could hold in memory."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    spec = spec_of(tmp_path)
    assert context_of(spec, served_config(spec, tmp_path)) > 1


def test_a_window_is_no_limit_of_the_context(tmp_path: Path) -> None:
    MistralConfig(sliding_window=64, max_position_embeddings=128).save_pretrained(tmp_path)
    spec = spec_of(tmp_path)
    config = served_config(spec, tmp_path)
    assert (config.sliding_window, context_of(spec, config)) == (64, 128)


def test_keys_and_values_of_each_kind_of_attention() -> None:
    grouped = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=3)
    assert kv_shape(grouped, torch.bfloat16).token_bytes == 2 * 3 * 2 * 16 * 2
    assert kv_shape(GPT2Config(n_embd=64, n_head=4, n_layer=3), torch.float32).token_bytes == 2 * 3 * 4 * 16 * 4


def test_a_model_whose_tokens_see_the_next_cannot_write(codellama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backwards(model: str, network: object, ids: list[int]) -> torch.Tensor:
        return torch.tensor([[float(ids[-1]), 0.0]])

    monkeypatch.setattr(load_checks, "model_logits", backwards)
    assert "cannot generate text" in reason_of(codellama)


def with_nan(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if (norm := tensors.get("model.norm.weight")) is not None:
            norm[0] = float("nan")
            save_file(tensors, file, {"format": "pt"})


def test_scores_that_are_not_finite_are_refused(own: Path) -> None:
    with_nan(own)
    with pytest.raises(NonFiniteLogits, match="mine"):
        load_generator(spec_of(own), FP32)


def test_auto_falls_back_to_fp32_where_bf16_is_not_finite(codellama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(spec: ModelSpec, folder: Path, config: PretrainedConfig, dtype: torch.dtype) -> object:
        network = read(spec, folder, config, dtype)
        if dtype != torch.float32:
            network.lm_head.weight[0] = float("inf")
        return network

    read = load.read_network
    monkeypatch.setattr("models.generation.load.read_network", spoilt)
    monkeypatch.setattr(loader, "pick_dtype", lambda wanted, _: "bf16" if wanted == "auto" else wanted)
    model = load_generator(spec_of(codellama), LoadOptions("cpu"))
    assert model.facts.dtype == "fp32"
    assert model.facts.notes[0].startswith("runs in fp32, because in bf16 ")
    with pytest.raises(NonFiniteLogits):
        load_generator(spec_of(codellama), LoadOptions("cpu", "bf16"))


def test_a_quantised_model_with_too_much_divergence_is_refused(
    codellama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_checks, "MAX_DIVERGENCE", {"int8": -1.0})
    assert "as int8 its probabilities are" in reason_of(codellama, LoadOptions("cpu", "bf16", "int8"))


def test_a_tokeniser_of_another_model_is_refused(codellama: Path, tmp_path: Path) -> None:
    folder = write_codellama(tmp_path / "wide")
    table = "model.embed_tokens.weight"
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        cut = {name: tensor[:300] if name in (table, "lm_head.weight") else tensor for name, tensor in tensors.items()}
        save_file({name: tensor.contiguous() for name, tensor in cut.items()}, file, {"format": "pt"})
    edited(folder, "config.json", vocab_size=300)
    assert "its weights have 300 rows" in reason_of(folder)


@pytest.mark.parametrize("quantization", [None, "int8", "int4"])
def test_expected_bytes_are_close_to_the_real_ones(tmp_path: Path, quantization: str | None) -> None:
    for write in (write_codellama, write_starcoder):
        folder = write(tmp_path / write.__name__, hidden=256, intermediate=1024, vocab=4096)
        spec, options = spec_of(folder), LoadOptions("cpu", "bf16", quantization)
        device, expected = expected_bytes(spec, options)
        assert device == "cpu"
        assert load_generator(spec, options).facts.weight_bytes == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_the_model_that_comes_with_mlbus(quantization: str | None) -> None:
    model = load_generator(load_catalogue().get("tiny_coder"), LoadOptions("cpu", "bf16", quantization))
    assert model.prompts.fill
    assert model.stop_ids
    if quantization:
        assert nats_in(model.facts.notes[0]) < 0.01


def nats_in(note: str) -> float:
    return float(note.partition(" nats")[0].rpartition(" ")[2])


def test_each_loader_is_for_its_kind(codellama: Path) -> None:
    with pytest.raises(ModelUnavailable, match="kind is generation"):
        load_generator(load_catalogue().get("minilm"), FP32)
    with pytest.raises(ModelUnavailable, match="kind is embedding"):
        loader.load(spec_of(codellama), FP32)


def test_a_layout_that_the_tokeniser_does_not_have_is_refused(own: Path) -> None:
    spec = ModelSpec(id="mine", kind="generation", folder=own, repository_layout="qwen")
    with pytest.raises(ModelUnavailable, match=r"repository_layout 'qwen', and its tokeniser has no <\|repo_name\|>"):
        load_generator(spec, FP32)
