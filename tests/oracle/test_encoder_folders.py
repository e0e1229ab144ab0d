"""The generic path: folders in sentence-transformers layout, of every pooling, against the library itself.

The models are tiny and random, with the real tokeniser of all-MiniLM-L6-v2. Tolerance: cosine >= 0.99999, fp32.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel

from models.catalogue import load_catalogue
from models.encoders.base import Encoder, TextOptions, Tokens, cosine_rows
from models.encoders.modules import read_sentence_transformer
from models.loading.loader import LoadOptions, load
from models.weights.hub import locate

FP32 = 0.99999
TEXTS = ["def hello(): pass", "", "return the sum of the squares", "a b c d e f g h i j k l m n o p"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a two-layer random BERT and a real tokeniser."""
    folder = tmp_path_factory.mktemp("backbone")
    minilm = load_catalogue().get("minilm")
    tokenizer = read_sentence_transformer(minilm, locate(minilm)).tokenizer
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def saved(backbone: Path, folder: Path, *tail: torch.nn.Module, **options: Any) -> tuple[Encoder, SentenceTransformer]:
    """The transformer followed by `tail`, saved by the library and read back both ways."""
    transformer = Transformer(str(backbone), max_seq_length=48)
    SentenceTransformer(modules=[transformer, *tail], device="cpu", **options).save(
        str(folder), create_model_card=False
    )
    spec = load_catalogue({"mine": {"kind": "embedding", "folder": str(folder)}}).get("mine")
    return load(spec, LoadOptions("cpu", "fp32")), read_sentence_transformer(spec, folder)


def tokens_of(encoder: Encoder, texts: list[str], options: TextOptions) -> list[Tokens]:
    return [item for item in encoder.tokenize(texts, options) if isinstance(item, Tokens)]


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_every_pooling(backbone: Path, tmp_path: Path, mode: str) -> None:
    encoder, peer = saved(backbone, tmp_path, Pooling(32, mode))
    found = encoder.encode(tokens_of(encoder, TEXTS, TextOptions()))
    np.testing.assert_allclose(found, peer.encode(TEXTS), atol=1e-5)


def test_dense_then_normalize(backbone: Path, tmp_path: Path) -> None:
    encoder, peer = saved(backbone, tmp_path, Pooling(32, "mean"), Dense(32, 8), Normalize())
    assert (encoder.dimensions, encoder.max_tokens) == (8, 48)
    found = encoder.encode(tokens_of(encoder, TEXTS, TextOptions()))
    assert cosine_rows(found, peer.encode(TEXTS)).min() >= FP32


@pytest.mark.parametrize(("truncate_dim", "dimensions"), [(8, 8), (64, 32)])
def test_vectors_are_cut_where_the_folder_says_so(
    backbone: Path, tmp_path: Path, truncate_dim: int, dimensions: int
) -> None:
    encoder, peer = saved(backbone, tmp_path, Pooling(32), truncate_dim=truncate_dim)
    found = encoder.encode(tokens_of(encoder, TEXTS, TextOptions()))
    assert (encoder.dimensions, found.shape) == (dimensions, (len(TEXTS), dimensions))
    np.testing.assert_allclose(found, peer.encode(TEXTS), atol=1e-5)


def test_default_prompt_of_the_folder(backbone: Path, tmp_path: Path) -> None:
    prompts = {"query": "query: ", "passage": "passage: "}
    encoder, peer = saved(backbone, tmp_path, Pooling(32), prompts=prompts, default_prompt_name="passage")
    for name in ("query", "passage", None):
        found = encoder.encode(tokens_of(encoder, TEXTS, TextOptions(prompt_name=name)))
        assert cosine_rows(found, peer.encode(TEXTS, prompt_name=name)).min() >= FP32


def test_pooling_without_the_prompt_in_a_batch_of_several_prompts(backbone: Path, tmp_path: Path) -> None:
    encoder, peer = saved(backbone, tmp_path, Pooling(32, "mean", include_prompt=False))
    pairs = [(random.Random(i).choice(["", "query: ", "a much longer prompt: "]), TEXTS[i % 4]) for i in range(12)]
    batch = [tokens_of(encoder, [text], TextOptions(prompt=prompt))[0] for prompt, text in pairs]
    expected = np.concatenate([peer.encode([text], prompt=prompt) for prompt, text in pairs])
    np.testing.assert_allclose(encoder.encode(batch), expected, atol=1e-5)


ARCHITECTURES = {
    "bert": "BertConfig",
    "roberta": "RobertaConfig",  # its positions begin behind the padding id
    "mpnet": "MPNetConfig",  # relative positions, attention of its own
    "distilbert": "DistilBertConfig",
    "modernbert": "ModernBertConfig",  # rotary positions, a local window in some layers
    "qwen2": "Qwen2Config",  # causal, with shared key and value heads
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
SIZES |= {"max_position_embeddings": 64, "pad_token_id": 0}
OWN_SIZES = {
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 64},
    "modernbert": {**SIZES, "local_attention": 8, "global_attn_every_n_layers": 2},
    "qwen2": {**SIZES, "num_key_value_heads": 2},
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_architecture_is_right_packed_or_falls_back(kind: str, backbone: Path, tmp_path: Path) -> None:
    minilm = load_catalogue().get("minilm")
    tokenizer = read_sentence_transformer(minilm, locate(minilm)).tokenizer
    torch.manual_seed(1)
    config = getattr(transformers, ARCHITECTURES[kind])(vocab_size=len(tokenizer), **OWN_SIZES.get(kind, SIZES))
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    encoder, peer = saved(tmp_path / "backbone", tmp_path / "model", Pooling(32))
    texts = [*TEXTS, "one more text that is longer than the others, so that rows differ", "x"]
    for batch in (texts, texts[::-1], texts[:1]):
        found = encoder.encode(tokens_of(encoder, batch, TextOptions()))
        assert cosine_rows(found, peer.encode(batch)).min() >= FP32
    assert encoder.packed is (kind in ("bert", "distilbert", "qwen2"))


def test_a_model_that_cannot_be_packed_runs_padded(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: torch.nn.Module) -> None:
        raise ValueError("not this one")

    monkeypatch.setattr("models.encoders.torch_encoder.use_packed_attention", refuse)
    encoder, peer = saved(backbone, tmp_path, Pooling(32))
    assert not encoder.packed
    assert cosine_rows(encoder.encode(tokens_of(encoder, TEXTS, TextOptions())), peer.encode(TEXTS)).min() >= FP32
