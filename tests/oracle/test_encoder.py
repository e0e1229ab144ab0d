"""The torch encoder against sentence-transformers' own encode, on the real all-MiniLM-L6-v2.

Tolerances: cosine >= 0.99999 in fp32, >= 0.999 in bf16; token ids are equal.
"""

import inspect
import random
import textwrap
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from models.catalogue import ModelSpec, load_catalogue
from models.encoders.base import Encoder, TextOptions, Tokens, Vectors, cosine_rows, finish
from models.encoders.modules import read_sentence_transformer
from models.errors import InvalidOption, TextTooLong
from models.loading.loader import LoadOptions, load
from models.weights.hub import locate

FP32, BF16 = 0.99999, 0.999
PLAIN = TextOptions()
LONG = " ".join(f"token_{i} = value_{i}" for i in range(200))
SHORT = [
    "def hello(): pass",
    "",
    "   \n\t ",
    "a",
    "Zürich, naïve café, Ελλάδα, 東京 🚀",
    "x" * 400,
    *(f"return {'value + ' * i}1" for i in range(0, 12, 3)),
]
TEXTS = [*SHORT, LONG, *(inspect.getsource(f) for f in (textwrap.indent, textwrap.shorten))]


@pytest.fixture(scope="module")
def minilm() -> ModelSpec:
    return load_catalogue().get("minilm")


@pytest.fixture(scope="module")
def encoder(minilm: ModelSpec) -> Encoder:
    return load(minilm, LoadOptions("cpu", "fp32"))


@pytest.fixture(scope="module")
def peer(minilm: ModelSpec) -> SentenceTransformer:
    return read_sentence_transformer(minilm, locate(minilm))


def tokens_of(encoder: Encoder, texts: list[str], options: TextOptions = PLAIN) -> list[Tokens]:
    found = encoder.tokenize(texts, options)
    assert all(isinstance(item, Tokens) for item in found)
    return [item for item in found if isinstance(item, Tokens)]


def embed(encoder: Encoder, texts: list[str], options: TextOptions = PLAIN) -> Vectors:
    return encoder.encode(tokens_of(encoder, texts, options))


@pytest.mark.parametrize("seed", range(3))
def test_vectors_equal_whatever_the_neighbours_and_the_order(
    encoder: Encoder, peer: SentenceTransformer, seed: int
) -> None:
    rng = random.Random(seed)
    texts = rng.sample(TEXTS, k=len(TEXTS))
    cuts = [0, *sorted(rng.sample(range(1, len(texts)), k=seed)), len(texts)]
    batches = [embed(encoder, texts[a:b]) for a, b in pairwise(cuts)]
    expected = peer.encode(texts, batch_size=1 + seed)
    assert cosine_rows(np.concatenate(batches), expected).min() >= FP32
    np.testing.assert_allclose(finish(np.concatenate(batches), True), expected, atol=1e-5)


def test_rows_of_equal_length_need_no_mask_and_equal_padded_ones(encoder: Encoder, peer: SentenceTransformer) -> None:
    texts = ["open the file", "close the door", "sort the list"]
    assert len({len(tokens) for tokens in tokens_of(encoder, texts)}) == 1
    padded = embed(encoder, [*texts, LONG])[:3]
    assert cosine_rows(embed(encoder, texts), peer.encode(texts)).min() >= FP32
    assert cosine_rows(embed(encoder, texts), padded).min() >= FP32


def test_vectors_are_float32_and_not_normalised(encoder: Encoder) -> None:
    vectors = embed(encoder, TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.dimensions)
    assert vectors.dtype == np.float32
    assert encoder.normalizes
    assert not np.allclose(np.linalg.norm(vectors, axis=1), 1.0)


def test_bf16_stays_close(minilm: ModelSpec, peer: SentenceTransformer) -> None:
    encoder = load(minilm, LoadOptions("cpu", "bf16"))
    assert encoder.version.endswith("-bf16")
    assert cosine_rows(embed(encoder, SHORT), peer.encode(SHORT)).min() >= BF16


@pytest.mark.parametrize("side", ["end", "start"])
def test_a_long_text_is_cut_as_the_peer_cuts_it(encoder: Encoder, peer: SentenceTransformer, side: str) -> None:
    options = TextOptions(truncate="end" if side == "end" else "start")
    peer.tokenizer.truncation_side = "right" if side == "end" else "left"
    try:
        expected_ids = peer.preprocess([LONG])["input_ids"][0].tolist()
        expected = peer.encode([LONG])
    finally:
        peer.tokenizer.truncation_side = "right"
    (tokens,) = tokens_of(encoder, [LONG], options)
    assert tokens.ids == expected_ids
    assert tokens.truncated
    assert len(tokens) == encoder.max_tokens
    assert cosine_rows(encoder.encode([tokens]), expected).min() >= FP32


def test_a_long_text_fails_alone_where_it_may_not_be_cut(encoder: Encoder) -> None:
    short, long, other = encoder.tokenize(["a", LONG, "b"], TextOptions(truncate="error"))
    assert isinstance(short, Tokens)
    assert isinstance(other, Tokens)
    assert isinstance(long, TextTooLong)
    assert (long.index, long.limit) == (1, 256)
    assert long.tokens > 256


def test_a_text_of_just_the_limit_is_not_cut(encoder: Encoder) -> None:
    exact, over = encoder.tokenize(["a " * 254, "a " * 255], TextOptions(truncate="error"))
    assert isinstance(exact, Tokens)
    assert (len(exact), exact.truncated) == (256, False)
    assert isinstance(over, TextTooLong)
    assert over.tokens == 257


@pytest.mark.parametrize("dimensions", [1, 64, 383, 384])
def test_cutting_equals_the_peer(encoder: Encoder, peer: SentenceTransformer, dimensions: int) -> None:
    expected = peer.encode(SHORT, truncate_dim=dimensions, normalize_embeddings=True)
    found = finish(embed(encoder, SHORT), True, dimensions)
    assert found.shape == (len(SHORT), dimensions)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_prompt_is_put_in_front(encoder: Encoder, peer: SentenceTransformer) -> None:
    found = embed(encoder, SHORT, TextOptions(prompt="search query: "))
    assert cosine_rows(found, peer.encode(SHORT, prompt="search query: ")).min() >= FP32


def test_named_and_default_prompts(minilm: ModelSpec, peer: SentenceTransformer) -> None:
    fields = {"prompts": {"code": "code: ", "plain": ""}, "default_prompt": "code"}
    encoder = load(minilm.model_copy(update=fields), LoadOptions("cpu", "fp32"))
    expected = {"code": peer.encode(SHORT, prompt="code: "), "plain": peer.encode(SHORT)}
    for name, vectors in expected.items():
        assert cosine_rows(embed(encoder, SHORT, TextOptions(prompt_name=name)), vectors).min() >= FP32
    assert cosine_rows(embed(encoder, SHORT), expected["code"]).min() >= FP32
    assert cosine_rows(embed(encoder, SHORT, TextOptions(prompt="")), expected["plain"]).min() >= FP32
    with pytest.raises(InvalidOption, match=r"unknown prompt 'poem'; known: .*code, plain"):
        encoder.tokenize(["a"], TextOptions(prompt_name="poem"))


def test_the_prompt_is_kept_where_the_start_is_cut(encoder: Encoder) -> None:
    (prompt,) = tokens_of(encoder, ["search query: "])
    (tokens,) = tokens_of(encoder, [LONG], TextOptions(prompt="search query: ", truncate="start"))
    (tail,) = tokens_of(encoder, [LONG], TextOptions(truncate="start"))
    kept = len(prompt) - 1
    assert tokens.ids[:kept] == prompt.ids[:-1]
    assert tokens.ids[kept:] == tail.ids[kept:]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=80) | st.just(LONG), min_size=1, max_size=4))
def test_token_ids_equal_the_peer(encoder: Encoder, peer: SentenceTransformer, texts: list[str]) -> None:
    features = peer.preprocess(texts)
    expected = [
        ids[: int(mask.sum())].tolist()
        for ids, mask in zip(features["input_ids"], features["attention_mask"], strict=True)
    ]
    assert [tokens.ids for tokens in tokens_of(encoder, texts)] == expected
