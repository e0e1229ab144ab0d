"""tiny_coder: what it is trained on, how, and what is written."""

import math
import re
from importlib import resources
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.tiny_coder import train as training
from bench.tiny_coder.data import (
    END,
    MIDDLE,
    PREFIX,
    SPECIAL,
    SUFFIX,
    Source,
    encode,
    read_sources,
    rearranged,
    split,
    stream,
    train_tokenizer,
)
from bench.tiny_coder.recipe import Recipe
from bench.tiny_coder.repository import bits_per_byte, repeated

REPOSITORY = Path(str(resources.files("models.bundled.tiny_coder")))
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
RECIPE = Recipe(4096, warmup_tokens=512, stages=((0, 32, 8), (2048, 64, 4)))


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    """Three small packages of the library: some files are held out."""
    wanted = ("asyncio/", "json/", "idlelib/s")
    return [source for source in read_sources() if source.path.startswith(wanted)]


@pytest.fixture
def run(sources: list[Source], tmp_path: Path) -> training.Run:
    return training.begin(sources, RECIPE, tmp_path / "checkpoint.safetensors", SHAPE)


def test_sources_are_split_by_their_paths(sources: list[Source]) -> None:
    trained, held_out = split(sources)
    assert [s.path for s in held_out] == ["asyncio/events.py", "idlelib/searchbase.py", "idlelib/squeezer.py"]
    assert sorted([*trained, *held_out], key=lambda s: s.path) == sources
    assert split(reversed(sources))[1] == held_out[::-1]


def test_sources_leave_out_tests_tables_and_copies(tmp_path: Path) -> None:
    for path in ("a.py", "b.py", "test/c.py", "p/tests/d.py", "encodings/e.py", "_sysconfigdata_x.py", "f.txt", "g.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x = 1\n" if path in ("a.py", "b.py") else path)
    (tmp_path / "latin.py").write_bytes(b"# \xe9")
    assert [s.path for s in read_sources(tmp_path)] == ["a.py", "g.py"]


@given(st.text(), st.integers())
def test_a_rearranged_text_can_be_put_together_again(text: str, seed: int) -> None:
    parts = [re.split(f"{PREFIX}|{SUFFIX}|{MIDDLE}", piece) for piece in rearranged(text, Random(seed))]
    assert "".join(prefix + middle + suffix for _, prefix, suffix, middle in parts) == text


def test_fill_in_the_middle_is_marked_in_starcoders_order(run: training.Run) -> None:
    source = Source("a.py", "def f(x):\n    return x\n")
    ids = stream(run.tokenizer, [source], "0", fim_rate=1.0)
    marks = run.tokenizer.convert_tokens_to_ids([PREFIX, SUFFIX, MIDDLE, END])
    assert [i for i in ids if i < len(SPECIAL)] == marks


def test_a_plain_stream_is_every_file_once(run: training.Run, sources: list[Source]) -> None:
    ids = stream(run.tokenizer, sources, "0", fim_rate=0.0)
    texts = run.tokenizer.decode(ids).split(END)
    assert sorted(texts) == sorted(["", *(source.text for source in sources)])
    assert (ids == stream(run.tokenizer, sources, "0", fim_rate=0.0)).all()


@given(st.text())
def test_the_vocabulary_covers_any_text(text: str) -> None:
    tokenizer = train_tokenizer(["x = 1\n"], 300)
    (ids,) = encode(tokenizer, [text])
    assert tokenizer.decode(ids) == text


def test_the_learning_rate_rises_stays_and_falls_to_zero() -> None:
    recipe = Recipe(1000, warmup_tokens=100, decay=0.5)
    assert [recipe.rate(t) for t in (50, 100, 500, 750, 1000, 1001)] == [0.5, 1, 1, 0.5, 0, 0]


def test_the_gradient_is_that_of_the_whole_loss(run: training.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "LOSS_TOKENS", 10)
    batch = torch.arange(66).view(2, 33)
    loss = training.backward(run.model, batch[:, :-1], batch[:, 1:])
    gradient = run.model.model.embed_tokens.weight.grad
    run.model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = cross_entropy(run.model(input_ids=batch[:, :-1]).logits.float().flatten(0, 1), batch[:, 1:].flatten())
    whole.backward()
    assert loss == pytest.approx(whole.item(), rel=1e-3)
    torch.testing.assert_close(gradient, run.model.model.embed_tokens.weight.grad, rtol=0.02, atol=1e-4)


@pytest.mark.slow
def test_a_run_lowers_the_loss_and_one_that_was_stopped_ends_alike(
    sources: list[Source], run: training.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, held_out = split(sources)
    before = training.measure(run, held_out)
    monkeypatch.setattr(training, "SAVE_STEPS", 12)
    for _, batch in zip(range(12), training.batches(run, trained), strict=False):
        training.step(run, batch)
    training.save_checkpoint(run)
    stopped = training.begin(sources, RECIPE, run.checkpoint, SHAPE)
    for each in (run, stopped):
        training.train(each, trained, held_out)
    assert run.progress.tokens == stopped.progress.tokens == RECIPE.total_tokens
    assert training.measure(run, held_out) < before - 0.05
    for mine, other in zip(run.model.parameters(), stopped.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_bits_per_byte_count_each_token_once(run: training.Run) -> None:
    torch.nn.init.zeros_(run.model.model.norm.weight)  # every token is equally likely
    for text in ("x", "def f(x):\n    return x\n" * 40):
        (ids,) = encode(run.tokenizer, [text])
        expected = len(ids) * math.log2(len(run.tokenizer)) / len(text)
        assert bits_per_byte(run.model, run.tokenizer, [text], window=16) == pytest.approx(expected)


def test_bits_per_byte_see_at_least_half_a_window(run: training.Run) -> None:
    """Of a text as long as the context, all is seen at once."""
    (ids,) = encode(run.tokenizer, ["".join(f"a{i} = {i}\n" for i in range(50))])
    text = run.tokenizer.decode(ids[:64])
    row = torch.tensor([[0, *ids[:64]]])
    with torch.inference_mode():
        logits = run.model(input_ids=row[:, :-1]).logits[0]
    expected = cross_entropy(logits, row[0, 1:], reduction="sum").item() / math.log(2) / len(text)
    assert bits_per_byte(run.model, run.tokenizer, [text]) == pytest.approx(expected)


def test_repeated_passages_are_counted() -> None:
    assert repeated(["abcdefgh!", "0123456789"], ["xabcdy", "z"], characters=4) == 0.25


def test_what_is_written_is_what_was_trained(sources: list[Source], run: training.Run, tmp_path: Path) -> None:
    trained, held_out = split(sources)
    bits = training.publish(run, tmp_path, trained, held_out)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    text = f"{PREFIX}def f(é):\n{SUFFIX}    return 1{MIDDLE}"
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert ids.tolist() == [run.tokenizer(text).input_ids] == encode(run.tokenizer, [text])
    torch.testing.assert_close(model(input_ids=ids).logits, run.model(input_ids=ids).logits)
    card = (tmp_path / "README.md").read_text()
    assert f"**{bits:.3f} bits per byte**" in card
    assert all(f"- `{source.path}`" in card for source in held_out)


def test_the_repository_that_comes_with_mlbus() -> None:
    assert sum(file.stat().st_size for file in REPOSITORY.glob("*.safetensors")) <= 12_000_000
    model, tokenizer = AutoModelForCausalLM.from_pretrained(REPOSITORY), AutoTokenizer.from_pretrained(REPOSITORY)
    assert tokenizer.convert_ids_to_tokens(range(4)) == list(SPECIAL)
    assert (model.config.model_type, model.dtype, len(tokenizer)) == ("llama", torch.bfloat16, model.config.vocab_size)
    assert (model.generation_config.eos_token_id, tokenizer.eos_token) == (0, END)
    ids = tokenizer("import os\n\ndef f(self, name):\n    return self", return_tensors="pt").input_ids
    assert model(input_ids=ids, labels=ids).loss < 4  # a guess is 8.3


@pytest.mark.parametrize(
    "statement",
    [
        "demonstration",
        "Python Software Foundation License",
        "Apache License 2.0",
        "bits per byte",
        "cannot do",
        "Held out",
    ],
)
def test_the_card_says(statement: str) -> None:
    assert statement in (REPOSITORY / "README.md").read_text()
