"""A small random model in Qodo-Embed-1-1.5B's own file layout, against transformers' Qwen2 with a mask of our own.

The reference goes through no code of sentence-transformers or ours: one text at a time, an explicit attention mask, the
end token put there by hand, the hidden state of the last token. Tolerance: cosine >= 0.99999 in fp32.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen2Model, Qwen2Tokenizer

from bench.random_models import QUERY_PROMPT, write_qodo
from models.catalogue import ModelSpec, load_catalogue
from models.encoders.base import TextOptions, Tokens, Vectors, check_options, cosine_rows, finish
from models.encoders.torch_encoder import TorchEncoder
from models.errors import ModelUnavailable
from models.loading.load_cache import LoadCache
from models.loading.loader import LoadOptions, load

FP32 = 0.99999
END = "<|endoftext|>"
PLAIN = TextOptions()
TEXTS = ["def hello(): pass", "x", "return the sum of the squares", "for i in range(10): total += i * i  # squares"]
FOUR = list(itertools.product([False, True], [False, True]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qodo(tmp_path_factory.mktemp("qodo"), layers=3)


def entry(folder: Path, **fields: object) -> ModelSpec:
    """The catalogue's own entry for Qodo, of the size of the test's model."""
    dimensions = json.loads((folder / "config.json").read_text())["hidden_size"]
    changed = {"folder": folder, "repository": None, "dimensions": dimensions, "dtype": "fp32"}
    return load_catalogue().get("qodo").model_copy(update={**changed, **fields})


def loaded(folder: Path, **fields: object) -> TorchEncoder:
    encoder = load(entry(folder, **fields), LoadOptions(device="cpu"))
    assert isinstance(encoder, TorchEncoder)
    return encoder


def reference(folder: Path, texts: list[str], *, causal: bool, end: bool) -> Vectors:
    """The last token's hidden state for each text alone, (N, D)."""
    model = Qwen2Model.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    vectors = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False) + [tokenizer.convert_tokens_to_ids(END)] * end
        allowed = torch.ones(1, 1, len(ids), len(ids))
        allowed = allowed.tril() if causal else allowed
        mask = torch.where(allowed > 0, 0.0, torch.finfo(torch.float32).min)
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([ids]), attention_mask=mask).last_hidden_state
        vectors.append(hidden[0, -1].numpy())
    return np.stack(vectors)


def embed(encoder: TorchEncoder, texts: list[str], options: TextOptions = PLAIN) -> Vectors:
    tokens = [item for item in encoder.tokenize(texts, options) if isinstance(item, Tokens)]
    assert len(tokens) == len(texts)
    return encoder.encode(tokens)


@pytest.mark.parametrize(("causal", "end"), FOUR)
def test_padded_alone_and_packed_equal_the_reference(folder: Path, causal: bool, end: bool) -> None:
    encoder = loaded(folder, causal=causal, append_eos=end)
    expected = reference(folder, TEXTS, causal=causal, end=end)
    assert encoder.packed
    alone = np.concatenate([embed(encoder, [text]) for text in TEXTS])
    packed = embed(encoder, TEXTS)
    encoder.pad()
    padded = embed(encoder, TEXTS)
    padded_alone = np.concatenate([embed(encoder, [text]) for text in TEXTS])
    for found in (alone, packed, padded, padded_alone):
        assert cosine_rows(found, expected).min() >= FP32


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("causal", [False, True])
def test_either_padding_side_gives_the_same(folder: Path, side: str, causal: bool) -> None:
    encoder = loaded(folder, padding_side=side, causal=causal)
    encoder.pad()
    expected = reference(folder, TEXTS, causal=causal, end=True)
    assert cosine_rows(embed(encoder, TEXTS), expected).min() >= FP32


def test_the_flags_matter(folder: Path) -> None:
    """Else the tests above would pass whatever the flags do."""
    vectors = [reference(folder, TEXTS, causal=causal, end=end) for causal, end in FOUR]
    for one, other in itertools.combinations(vectors, 2):
        assert cosine_rows(one, other).min() < 0.99


def test_the_catalogues_entry_is_what_is_served(folder: Path) -> None:
    encoder = loaded(folder)
    (tokens,) = encoder.tokenize(["x"], PLAIN)
    assert isinstance(tokens, Tokens)
    assert len(tokens) == 2  # the end token is there although `add_eos_token` in the tokeniser's own file is ignored
    assert (encoder.max_tokens, encoder.normalizes, encoder.prompts["query"]) == (32768, True, QUERY_PROMPT)
    found = finish(embed(encoder, TEXTS, TextOptions(prompt_name="query")), encoder.normalizes)
    expected = reference(folder, [QUERY_PROMPT + text for text in TEXTS], causal=False, end=True)
    assert cosine_rows(found, expected).min() >= FP32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_a_text_that_is_too_long_keeps_its_end_token(folder: Path) -> None:
    encoder = loaded(folder, max_tokens=16)
    long = "value " * 50
    whole = encoder.tokenize([long], PLAIN)[0]
    start = encoder.tokenize([long], TextOptions(truncate="start"))[0]
    assert isinstance(whole, Tokens)
    assert isinstance(start, Tokens)
    assert len(whole) == len(start) == 16
    assert whole.ids[-1] == start.ids[-1] == encoder.tokenize(["x"], PLAIN)[0].ids[-1]


def test_the_true_width(tmp_path: Path) -> None:
    folder = write_qodo(tmp_path, layers=1, hidden=1536, heads=12, kv_heads=2, intermediate=256)
    encoder = loaded(folder, dimensions=1536)
    check_options(encoder, TextOptions(), 1536)
    assert cosine_rows(embed(encoder, TEXTS), reference(folder, TEXTS, causal=False, end=True)).min() >= FP32


def test_bf16_is_within_its_gate_and_says_so(folder: Path) -> None:
    encoder = loaded(folder, dtype="bf16", min_cosine=0.99)
    assert encoder.version.endswith("-bf16")
    assert cosine_rows(embed(encoder, TEXTS), reference(folder, TEXTS, causal=False, end=True)).min() >= 0.99


def test_the_reference_is_computed_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = LoadOptions(device="cpu", cache=LoadCache(tmp_path))
    load(entry(folder), options)
    monkeypatch.setattr("models.loading.self_test.encode_test_texts", lambda _: pytest.fail("was computed again"))
    load(entry(folder), options)


def test_no_end_token_to_append_is_an_error(tmp_path: Path) -> None:
    folder = write_qodo(tmp_path)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "eos_token": None}))
    with pytest.raises(ModelUnavailable, match="append_eos"):
        loaded(folder)
