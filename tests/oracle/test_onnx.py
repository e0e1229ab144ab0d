"""The ONNX encoder: tiny graphs against numpy, and all-MiniLM-L6-v2 exported to ONNX against the torch path.

Tolerances: cosine >= 0.99999 in fp32, >= 0.999 in fp16; the tiny graphs within 1e-5 of each value, in fp16 1e-2.
"""

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_models import DIMENSIONS, MAX_TOKENS, WORDS, TinyGraph, hidden_states, save, write_json
from sentence_transformers import SentenceTransformer

from bench.onnx_export import export
from models.catalogue import ModelSpec, load_catalogue
from models.encoders.base import TextOptions, Tokens, Vectors, check_options, cosine_rows
from models.encoders.modules import read_sentence_transformer
from models.encoders.onnx_encoder import OnnxEncoder
from models.encoders.onnx_session import OnnxOptions
from models.errors import InvalidOption, ModelUnavailable, OutOfDeviceMemory, TextTooLong
from models.loading.loader import LoadOptions, load
from models.weights.hub import locate

DIGEST = "0123456789abcdef" * 4
TASKS = {"query": 0, "passage": 1, "match": 2}
JINA = {"tasks": TASKS, "default_task": "match", "prompts": {"query": "query: "}}
ON_CPU, AS_IT_IS = OnnxOptions(), TextOptions()
PLAIN = TinyGraph(task_shape=None)
TEXTS = ["w1 w2", "w3", "w4 w5 w6 w7 w8 w9", "", "w1 unheard w2", "w11 w12 w13"]


def entry(folder: Path, **fields: Any) -> ModelSpec:
    known = {"kind": "embedding", "served_by": "onnx", "folder": str(folder)}
    return load_catalogue({"mine": known | fields}).get("mine")


def encoder_of(folder: Path, options: OnnxOptions = ON_CPU, **fields: Any) -> OnnxEncoder:
    return OnnxEncoder(entry(folder, **fields), DIGEST, folder, options)


def reason_for(folder: Path, options: OnnxOptions = ON_CPU, **fields: Any) -> str:
    """Why a folder cannot be served: one line that names the model, and the next step as its last clause."""
    with pytest.raises(ModelUnavailable) as caught:
        encoder_of(folder, options, **fields)
    assert caught.value.model == "mine"
    assert "\n" not in str(caught.value)
    assert "; " in caught.value.reason
    return caught.value.reason


def tokens_of(encoder: OnnxEncoder, texts: list[str], options: TextOptions = AS_IT_IS) -> list[Tokens]:
    found = encoder.tokenize(texts, options)
    assert all(isinstance(item, Tokens) for item in found)
    return [item for item in found if isinstance(item, Tokens)]


def embed(encoder: OnnxEncoder, texts: list[str], options: TextOptions = AS_IT_IS) -> Vectors:
    return encoder.encode(tokens_of(encoder, texts, options))


def ids_of(text: str) -> list[int]:
    inner = [WORDS.index(word) if word in WORDS else WORDS.index("[UNK]") for word in text.replace(":", " :").split()]
    return [WORDS.index("[CLS]"), *inner, WORDS.index("[SEP]")]


def expected(texts: list[str], task: int | None = None, pool: Callable[..., Any] = np.mean) -> np.ndarray:
    return np.stack([pool(hidden_states(ids_of(text), task), axis=0) for text in texts])


@pytest.fixture(scope="module")
def jina(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("jina"))


def test_facts_of_an_encoder(jina: Path) -> None:
    encoder = encoder_of(jina, **JINA, matryoshka=[4, 8, 16])
    graph = jina / "onnx"
    assert (encoder.model, encoder.version, encoder.dtype) == ("mine", "0123456789ab-fp32", "fp32")
    assert (encoder.dimensions, encoder.max_tokens, encoder.device) == (DIMENSIONS, MAX_TOKENS, "cpu")
    assert (encoder.packed, encoder.normalizes, encoder.quantization, encoder.notes) == (False, True, None, ())
    assert (encoder.tasks, encoder.prompts, encoder.matryoshka) == (TASKS, {"query": "query: "}, (4, 8, 16))
    assert encoder.weight_bytes == sum((graph / name).stat().st_size for name in ("model.onnx", "model.onnx_data"))


@pytest.mark.parametrize(("task", "number"), TASKS.items())
def test_padded_equals_alone_equals_numpy(jina: Path, task: str, number: int) -> None:
    encoder, options = encoder_of(jina, **JINA), TextOptions(task=task, prompt="")
    found = embed(encoder, TEXTS, options)
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), DIMENSIONS))
    np.testing.assert_allclose(found, expected(TEXTS, number), atol=1e-5)
    np.testing.assert_allclose(found, np.concatenate([embed(encoder, [text], options) for text in TEXTS]), atol=1e-5)


def test_a_task_brings_its_prompt_and_the_default_applies(jina: Path) -> None:
    encoder = encoder_of(jina, **JINA)
    np.testing.assert_allclose(embed(encoder, ["w1"]), expected(["w1"], 2), atol=1e-5)
    with_prompt = expected(["query: w1"], 0)
    np.testing.assert_allclose(embed(encoder, ["w1"], TextOptions(task="query")), with_prompt, atol=1e-5)
    (tokens,) = tokens_of(encoder, ["w1"], TextOptions(task="query"))
    assert (tokens.task, tokens.prompt_tokens) == (0, 3)
    with pytest.raises(InvalidOption, match="unknown task"):
        encoder.tokenize(["w1"], TextOptions(task="poem"))
    with pytest.raises(InvalidOption, match="unknown prompt"):
        encoder.tokenize(["w1"], TextOptions(prompt_name="poem"))


@pytest.mark.parametrize("default", ["query", "poem"])
def test_a_task_that_the_graph_lacks_is_refused_by_name(jina: Path, default: str) -> None:
    reason = reason_for(jina, tasks={"query": 0, "poem": 99}, default_task=default)
    assert "idx=99" in reason
    assert "correct the task 'poem' in its entry" in reason


def test_a_batch_has_one_task(jina: Path) -> None:
    encoder = encoder_of(jina, **JINA)
    mixed = [tokens_of(encoder, ["w1"], TextOptions(task=task))[0] for task in ("query", "passage")]
    with pytest.raises(ValueError, match="same task"):
        encoder.encode(mixed)


def test_nothing_to_encode(jina: Path) -> None:
    encoder = encoder_of(jina, **JINA)
    assert encoder.encode([]).shape == (0, DIMENSIONS)
    (full,) = tokens_of(encoder, ["w1"])
    vectors = encoder.encode([Tokens([], task=2), full])
    assert not vectors[0].any()
    np.testing.assert_allclose(vectors[1:], expected(["w1"], 2), atol=1e-5)


def test_matryoshka_dimensions(jina: Path) -> None:
    encoder = encoder_of(jina, **JINA, matryoshka=[4, 8])
    for dimensions in (None, 4, 8, DIMENSIONS):
        check_options(encoder, TextOptions(), dimensions)
    with pytest.raises(InvalidOption, match="dimensions must be one of 4, 8, not 5"):
        check_options(encoder, TextOptions(), 5)


def test_a_long_text_is_cut_at_the_limit(jina: Path) -> None:
    encoder, words = encoder_of(jina, **JINA, max_tokens=8), [f"w{i}" for i in range(20)]
    np.testing.assert_allclose(embed(encoder, [" ".join(words)]), embed(encoder, [" ".join(words[:6])]), atol=1e-6)
    assert tokens_of(encoder, [" ".join(words)])[0].truncated
    (error,) = encoder.tokenize([" ".join(words)], TextOptions(truncate="error"))
    assert isinstance(error, TextTooLong)
    assert (error.tokens, error.limit) == (22, 8)


@pytest.mark.parametrize(
    "tiny",
    [
        TinyGraph(integer=TensorProto.INT32),
        TinyGraph(task_shape=[1]),
        TinyGraph(extra=("token_type_ids", "position_ids")),
        TinyGraph(rank_declared=False),
    ],
    ids=["int32", "task of shape 1", "token types and positions", "rank not declared"],
)
def test_graphs_of_other_exporters(tmp_path: Path, tiny: TinyGraph) -> None:
    encoder = encoder_of(save(tmp_path, tiny), **JINA)
    np.testing.assert_allclose(embed(encoder, TEXTS), expected(TEXTS, 2), atol=1e-5)


def test_an_fp16_graph(tmp_path: Path) -> None:
    folder = save(tmp_path, TinyGraph(dtype=np.float16), "onnx/model_fp16.onnx")
    files = {"fp32": "onnx/model.onnx", "fp16": "onnx/model_fp16.onnx"}
    encoder = encoder_of(folder, OnnxOptions(dtype="fp16"), **JINA, onnx_files=files)
    found = embed(encoder, TEXTS)
    assert (encoder.version, encoder.dtype, found.dtype) == ("0123456789ab-fp16", "fp16", np.float32)
    np.testing.assert_allclose(found, expected(TEXTS, 2), atol=1e-2)
    assert cosine_rows(found, expected(TEXTS, 2)).min() >= 0.999


@pytest.mark.parametrize("name", ["sentence_embedding", "vectors"])
@pytest.mark.parametrize("rank_declared", [True, False])
def test_a_pooled_output_is_taken_as_it_is(tmp_path: Path, name: str, rank_declared: bool) -> None:
    tiny = TinyGraph(task_shape=None, extra=("token_type_ids",), pooled_as=name, rank_declared=rank_declared)
    encoder = encoder_of(save(tmp_path, tiny))
    # Of any other name it may be BERT's pooler, and the hidden states come first.
    pool = np.max if name == "sentence_embedding" else np.mean
    texts = ["w1 w2", "w3 w4"]
    np.testing.assert_allclose(embed(encoder, texts), expected(texts, None, pool), atol=1e-5)


def test_the_only_vectors_are_taken(tmp_path: Path) -> None:
    folder = save(tmp_path, TinyGraph(task_shape=None, pooled_as="vectors"))
    path = folder / "onnx/model.onnx"
    model = onnx.load(path, load_external_data=False)
    del model.graph.output[0]
    path.write_bytes(model.SerializeToString())
    np.testing.assert_allclose(embed(encoder_of(folder), ["w1 w2"]), expected(["w1 w2"], None, np.max), atol=1e-5)


def first(hidden: np.ndarray, axis: int) -> np.ndarray:
    return hidden[0]


def last(hidden: np.ndarray, axis: int) -> np.ndarray:
    return hidden[-1]


@pytest.mark.parametrize(
    ("mode", "flag", "pool"),
    [
        ("mean", "mean_tokens", np.mean),
        ("max", "max_tokens", np.max),
        ("cls", "cls_token", first),
        ("lasttoken", "lasttoken", last),
    ],
)
def test_every_pooling_from_every_place(tmp_path: Path, mode: str, flag: str, pool: Callable[..., Any]) -> None:
    folder, wanted = save(tmp_path, PLAIN), expected(TEXTS, None, pool)
    np.testing.assert_allclose(embed(encoder_of(folder, pooling=mode), TEXTS), wanted, atol=1e-5)
    flags = {f"pooling_mode_{each}": each == flag for each in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    for config in (flags, {"pooling_mode": mode}, {"pooling_mode": [mode]}):
        write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": DIMENSIONS, **config})
        np.testing.assert_allclose(embed(encoder_of(folder), TEXTS), wanted, atol=1e-5)


def test_mean_pooling_is_the_default(tmp_path: Path) -> None:
    np.testing.assert_allclose(embed(encoder_of(save(tmp_path, PLAIN)), TEXTS), expected(TEXTS), atol=1e-5)


def test_pooling_without_the_prompt(tmp_path: Path) -> None:
    folder = save(tmp_path, PLAIN)
    write_json(folder / "1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False})
    found = embed(encoder_of(folder), ["w1 w2"], TextOptions(prompt="query: "))
    np.testing.assert_allclose(found[0], hidden_states(ids_of("query: w1 w2"), None)[3:].mean(axis=0), atol=1e-5)


def test_prompts_of_the_folder(tmp_path: Path) -> None:
    folder = save(tmp_path, PLAIN)
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "passage"}
    write_json(folder / "config_sentence_transformers.json", prompts)
    encoder = encoder_of(folder, prompts={"plain": ""})
    assert set(encoder.prompts) == {"query", "passage", "plain"}
    np.testing.assert_allclose(embed(encoder, ["w1"]), expected(["passage: w1"]), atol=1e-5)
    found = embed(encoder, ["w1"], TextOptions(prompt_name="query"))
    np.testing.assert_allclose(found, expected(["query: w1"]), atol=1e-5)
    assert "'poem'" in reason_for(folder, default_prompt="poem")


@pytest.mark.parametrize(
    ("places", "limit"),
    [
        ({"sentence_bert_config.json": {"max_seq_length": 9}}, 9),
        ({"tokenizer_config.json": {"model_max_length": 10**30}, "config.json": {"max_position_embeddings": 11}}, 11),
        ({"tokenizer_config.json": {"model_max_length": 12}, "config.json": {"max_position_embeddings": 14}}, 12),
    ],
)
def test_where_the_limit_is_found(tmp_path: Path, places: dict[str, Any], limit: int) -> None:
    folder = save(tmp_path, PLAIN)
    for name, content in places.items():
        write_json(folder / name, content)
    assert encoder_of(folder).max_tokens == limit
    assert encoder_of(folder, max_tokens=5).max_tokens == 5


@pytest.mark.parametrize(
    ("places", "most"),
    [
        ({"sentence_bert_config.json": {"max_seq_length": 9}, "config.json": {"max_position_embeddings": 40}}, 40),
        ({"config.json": {"max_position_embeddings": 40, "model_type": "xlm-roberta"}}, 38),
        ({}, MAX_TOKENS),
        ({"tokenizer_config.json": {}}, 100_000),
    ],
)
def test_an_entry_may_exceed_the_authors_limit_but_not_the_positions(
    tmp_path: Path, places: dict[str, Any], most: int
) -> None:
    folder = save(tmp_path, PLAIN)
    for name, content in places.items():
        write_json(folder / name, content)
    assert encoder_of(folder, max_tokens=100_000).max_tokens == most


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *(("tokenizer_config.json", {"model_max_length": value}) for value in ("abc", [1], True, -5, 0)),
        ("config.json", {"max_position_embeddings": "many"}),
        ("config_sentence_transformers.json", {"prompts": ["query: "]}),
        ("config_sentence_transformers.json", {"prompts": {"query": 5}}),
        ("config_sentence_transformers.json", {"default_prompt_name": ["query"]}),
        ("1_Pooling/config.json", {"pooling_mode": 5}),
        ("sentence_bert_config.json", {"modality_config": {"text": {}, "message": {}}}),
    ],
)
def test_facts_of_another_kind_are_refused(tmp_path: Path, file: str, content: dict[str, Any]) -> None:
    folder = save(tmp_path, PLAIN)
    write_json(folder / file, content)
    (field,) = content
    for fields in ({}, {"max_tokens": 5}):
        assert field.removesuffix("_name").removesuffix("_mode") in reason_for(folder, **fields)


def test_an_odd_pad_token_counts_as_none(tmp_path: Path) -> None:
    folder = save(tmp_path, PLAIN, pad_token=["w9"])
    write_json(folder / "config.json", {"pad_token_id": "w9"})
    assert encoder_of(folder)._inputs._pad_id == 0


def test_padding_is_filled_with_the_pad_id(tmp_path: Path) -> None:
    folder = save(tmp_path, PLAIN, pad_token={"content": "w9"})
    encoder = encoder_of(folder)
    arrays = encoder._inputs.arrays(tokens_of(encoder, ["w1 w2", "w1"]))
    assert arrays["input_ids"][1, -1] == WORDS.index("w9")
    assert arrays["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]


@pytest.mark.parametrize(
    ("tiny", "fields", "words"),
    [
        (TinyGraph(extra=("pixel_values",)), JINA, ["pixel_values", "attention_mask", "task_id"]),
        (TinyGraph(), {}, ["task_id", "`tasks`", "`default_task`"]),
        (TinyGraph(), {"tasks": TASKS}, ["`default_task`"]),
        (PLAIN, JINA, ["no task_id", "`tasks`"]),
        (TinyGraph(task_shape=[2]), JINA, ["task_id", "[2]"]),
        (TinyGraph(sequence=128), JINA, ["128", "dynamic"]),
        (TinyGraph(mask=TensorProto.FLOAT), JINA, ["int64", "attention_mask", "tensor(float)"]),
        (PLAIN, {"dimensions": 99}, ["99", str(DIMENSIONS), "`dimensions`"]),
        (PLAIN, {"pooling": "median"}, ["median", "lasttoken"]),
        (PLAIN, {"causal": True}, ["`causal`"]),
        (PLAIN, {"onnx_files": {"fp16": "onnx/model.onnx"}}, ["fp32", "fp16", "`onnx_files`"]),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_unfit_models_are_refused_with_the_next_step(
    tmp_path: Path, tiny: TinyGraph, fields: dict[str, Any], words: list[str]
) -> None:
    reason = reason_for(save(tmp_path, tiny), **fields)
    assert [word for word in words if word not in reason] == []


def test_modules_that_would_have_to_follow_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, PLAIN)
    kinds = [("models.Transformer", ""), ("models.Pooling", "1_Pooling"), ("models.Dense", "2_Dense")]
    modules = [{"type": f"sentence_transformers.{kind}", "path": path} for kind, path in kinds]
    write_json(folder / "modules.json", modules)
    assert "Dense" in reason_for(folder)
    save(tmp_path, TinyGraph(task_shape=None, pooled_as="sentence_embedding"))
    assert encoder_of(folder).dimensions == DIMENSIONS


def truncated(folder: Path) -> None:
    path = folder / "onnx/model.onnx"
    path.write_bytes(path.read_bytes()[:200])


def of_a_later_opset(folder: Path) -> None:
    path = folder / "onnx/model.onnx"
    model = onnx.load(path, load_external_data=False)
    model.opset_import[0].version = 99
    path.write_bytes(model.SerializeToString())


def with_data_outside(folder: Path) -> None:
    path = folder / "onnx/model.onnx"
    (path.parent / "model.onnx_data").rename(folder.parent / "secret")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for each in (each for each in tensor.external_data if each.key == "location"):
            each.value = "../../secret"
    path.write_bytes(model.SerializeToString())


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no graph": (lambda folder: (folder / "onnx/model.onnx").unlink(), "there is no onnx/model.onnx"),
    "no data": (lambda folder: (folder / "onnx/model.onnx_data").unlink(), "model.onnx_data"),
    "data cut short": (lambda folder: os.truncate(folder / "onnx/model.onnx_data", 100), "out of bounds"),
    "data outside": (with_data_outside, "outside"),
    "truncated": (truncated, "onnx/model.onnx cannot be read"),
    "empty": (lambda folder: os.truncate(folder / "onnx/model.onnx", 0), "No graph was found"),
    "no protobuf": (lambda folder: (folder / "onnx/model.onnx").write_text("hello world"), "cannot be read"),
    "another protobuf": (lambda folder: (folder / "onnx/model.onnx").write_bytes(b"\x0a\x01x"), "No graph was found"),
    "later opset": (of_a_later_opset, "older opset"),
    "no tokeniser": (lambda folder: (folder / "tokenizer.json").unlink(), "there is no tokenizer.json"),
    "broken tokeniser": (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer.json cannot be read"),
    "broken JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON"),
    "odd JSON": (lambda folder: (folder / "config.json").write_text("[1]"), "not a JSON object"),
    "odd modules": (lambda folder: (folder / "modules.json").write_text("[1]"), "not a list of modules"),
    "no limit": (lambda folder: (folder / "tokenizer_config.json").unlink(), "`max_tokens`"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_by_what_is_wrong(tmp_path: Path, damage: str) -> None:
    folder = save(tmp_path / "model", PLAIN)
    harm, words = DAMAGES[damage]
    harm(folder)
    assert words in reason_for(folder)


def test_weights_in_the_hub_cache_are_links(jina: Path, tmp_path: Path) -> None:
    for file in (file for file in jina.rglob("*") if file.is_file()):
        blob, link = tmp_path / "blobs" / file.name.encode().hex(), tmp_path / "snapshots/main" / file.relative_to(jina)
        blob.parent.mkdir(exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(file.read_bytes())
        link.symlink_to(os.path.relpath(blob, link.parent))
    found = embed(encoder_of(tmp_path / "snapshots/main", **JINA), TEXTS)
    np.testing.assert_allclose(found, expected(TEXTS, 2), atol=1e-5)


def test_an_encoder_works_after_out_of_memory(tmp_path: Path) -> None:
    encoder = encoder_of(save(tmp_path, TinyGraph(hungry=True)), **JINA)
    with pytest.raises(OutOfDeviceMemory) as caught:
        embed(encoder, ["w1", "w2"])
    assert caught.value.device == "cpu"
    np.testing.assert_allclose(embed(encoder, ["w1"]), expected(["w1"], 2), atol=1e-5)


def test_cuda_that_does_not_start_is_noted(jina: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = encoder_of(jina, OnnxOptions(device="cuda", memory_limit_bytes=1 << 30), **JINA)
    on_cuda = encoder.device == "cuda:0"
    assert (encoder.notes == ()) is on_cuda
    assert on_cuda or "CUDA" in encoder.notes[0]
    np.testing.assert_allclose(embed(encoder, TEXTS), expected(TEXTS, 2), atol=1e-5)
    assert capfd.readouterr() == ("", "")


def test_an_encoder_that_is_dropped_frees_its_session(jina: Path) -> None:
    encoder = encoder_of(jina, **JINA)
    assert encoder._graph is not None
    session = weakref.ref(encoder._graph._session)
    gc.disable()
    try:
        del encoder
        assert session() is None
    finally:
        gc.enable()


def test_a_closed_encoder_frees_its_graph_and_refuses_texts(jina: Path) -> None:
    encoder = encoder_of(jina, **JINA)
    assert encoder._graph is not None
    session, tokens = weakref.ref(encoder._graph._session), tokens_of(encoder, ["w1"])
    encoder.close()
    encoder.close()
    assert session() is None
    with pytest.raises(RuntimeError, match="closed"):
        encoder.encode(tokens)


@pytest.fixture(scope="module")
def minilm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(locate(load_catalogue().get("minilm")), tmp_path_factory.mktemp("export") / "minilm")


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path) -> OnnxEncoder:
    return encoder_of(minilm_folder, dimensions=384, max_tokens=256)


@pytest.fixture(scope="module")
def peer() -> SentenceTransformer:
    model = load_catalogue().get("minilm")
    return read_sentence_transformer(model, locate(model))


@pytest.mark.slow
def test_minilm_equals_torch(minilm: OnnxEncoder, peer: SentenceTransformer) -> None:
    texts = ["def hello(): pass", "", "Zürich, naïve café, Ελλάδα, 東京 🚀", "x" * 400, "a b " * 200, "one more"]
    for batch in (texts, texts[::-1], texts[:1]):
        found = embed(minilm, batch)
        assert cosine_rows(found, peer.encode(batch)).min() >= 0.99999
    found = embed(minilm, texts, TextOptions(prompt="search query: "))
    assert cosine_rows(found, peer.encode(texts, prompt="search query: ")).min() >= 0.99999


GIVES_BACK = """
import os, sys
from pathlib import Path
from models.catalogue import load_catalogue
from models.encoders.base import TextOptions
from models.encoders.onnx_encoder import OnnxEncoder
from models.encoders.onnx_session import OnnxOptions

entry = {"kind": "embedding", "served_by": "onnx", "folder": sys.argv[1]}
encoder = OnnxEncoder(load_catalogue({"m": entry}).get("m"), "0" * 64, Path(sys.argv[1]), OnnxOptions())

def mib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024

def embed(texts):
    encoder.encode(encoder.tokenize(texts, TextOptions()))

embed(["a b c"] * 8)
before = mib("VmRSS")
embed(["a b " * 200] * 16)
print(mib("VmHWM") - before, mib("VmRSS") - before)
"""


@pytest.mark.slow
def test_memory_is_freed_after_a_large_batch(minilm_folder: Path) -> None:
    command = [sys.executable, "-c", GIVES_BACK, str(minilm_folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    took, kept = map(int, done.stdout.split())
    assert took > 150
    assert kept < took / 2


def test_a_graph_whose_vectors_depend_on_the_batch_runs_one_text_at_a_time(tmp_path: Path) -> None:
    """Dynamic quantisation scales the numbers of all texts together."""
    folder = save(tmp_path, replace(PLAIN, quantized=True))
    together = encoder_of(folder)
    alone = np.concatenate([embed(together, [text]) for text in TEXTS])
    assert cosine_rows(embed(together, TEXTS), alone).min() < 0.999
    encoder = load(entry(folder), LoadOptions("cpu"))
    assert encoder.packed  # a batch costs what its texts do
    assert "runs one text at a time, because in a batch model 'mine' failed" in " ".join(encoder.notes)
    np.testing.assert_array_equal(embed(encoder, TEXTS), alone)


def test_vectors_are_cut_where_the_folder_says_so(tmp_path: Path) -> None:
    folder = save(tmp_path, PLAIN)
    write_json(folder / "config_sentence_transformers.json", {"truncate_dim": 4})
    encoder = encoder_of(folder)
    assert encoder.dimensions == 4
    np.testing.assert_allclose(embed(encoder, TEXTS), expected(TEXTS)[:, :4], atol=1e-5)
    write_json(folder / "config_sentence_transformers.json", {"truncate_dim": "four"})
    assert "truncate_dim 'four', which is no length" in reason_for(folder)
