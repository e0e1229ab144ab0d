"""Tokens to look at against the tokenizers library: its ids, its decoding, and its offsets counted in bytes."""

import inspect
import textwrap
from functools import cache
from itertools import accumulate

import pytest
from generation_models import codellama, starcoder
from gguf_model import converted_folder
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from models.catalogue import load_catalogue
from models.encoders.tokenise import TextTokenizer
from models.errors import InvalidOption
from models.generation.prompt import Prompts
from models.generation.tokenizer import GenerationTokenizer
from models.generation.types import Chat, Message, Plain
from models.tokenized_text import TokenizedText, Vocabulary
from models.weights.hub import locate

TEXTS = [
    "",
    "def fib(n):\r\n\treturn n\r\n",
    "naïve 🤷🏽‍♀️ 日本語 ️e\u0301",
    "a\0b",
    " \n\n  42  ",
    "<|endoftext|>x<s></s>[CLS]",
    inspect.getsource(textwrap) * 2,
]


@cache
def generation(name: str) -> tuple[Tokenizer, Prompts]:
    folders = {
        "tiny_coder": lambda: locate(load_catalogue().get("tiny_coder")),
        "smollm2": converted_folder,
        "codellama": codellama,
        "starcoder": starcoder,
    }
    folder = folders[name]()
    tokenizer = GenerationTokenizer.read(folder)
    read = AutoTokenizer.from_pretrained(folder)
    return reference(read.backend_tokenizer.to_str()), Prompts(tokenizer, frozenset(), tokenizer.vocabulary)


@cache
def minilm() -> tuple[Tokenizer, TextTokenizer]:
    folder = locate(load_catalogue().get("minilm"))
    backend = reference((folder / "tokenizer.json").read_text())
    return backend, TextTokenizer(backend, 256)


def reference(description: str) -> Tokenizer:
    tokenizer = Tokenizer.from_str(description)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def assert_same(found: TokenizedText, vocabulary: Vocabulary, tokenizer: Tokenizer, text: str, special: bool) -> None:
    expected = tokenizer.encode(text, add_special_tokens=special)
    assert list(found.ids) == expected.ids
    at = list(accumulate((len(character.encode()) for character in text), initial=0))
    assert found.offsets() == [(at[start], at[end]) for start, end in expected.offsets]
    for skip in (True, False):
        assert vocabulary.decode(found.ids, skip) == tokenizer.decode(expected.ids, skip_special_tokens=skip)
    added = tokenizer.get_added_tokens_decoder()
    is_special = [token in added and added[token].special for token in expected.ids]
    assert [token in vocabulary.special for token in found.ids] == is_special


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    "name", ["tiny_coder", pytest.param("smollm2", marks=pytest.mark.slow), "codellama", "starcoder"]
)
def test_a_generation_models_tokens_are_the_librarys(name: str, special: bool) -> None:
    tokenizer, prompts = generation(name)
    for text in TEXTS:
        assert_same(prompts.tokenized(Plain(text), special), prompts.vocabulary, tokenizer, text, special)


@pytest.mark.parametrize("special", [True, False])
def test_an_embedding_models_tokens_are_the_librarys(special: bool) -> None:
    tokenizer, ours = minilm()
    for text in TEXTS:
        assert_same(ours.tokenized(text, "", special), ours.vocabulary, tokenizer, text, special)


@given(st.text(), st.booleans())
def test_any_text_has_the_librarys_tokens(text: str, special: bool) -> None:
    tokenizer, prompts = generation("tiny_coder")
    assert_same(prompts.tokenized(Plain(text), special), prompts.vocabulary, tokenizer, text, special)
    assert prompts.vocabulary.decode(prompts.tokenized(Plain(text)).ids, False) == text
    tokenizer, ours = minilm()
    assert_same(ours.tokenized(text, "", special), ours.vocabulary, tokenizer, text, special)


def test_counting_gives_the_same_ids() -> None:
    _, prompts = generation("codellama")
    _, ours = minilm()
    for text in TEXTS:
        whole, counted = prompts.tokenized(Plain(text)), prompts.tokenized(Plain(text), offsets=False)
        assert (counted.ids, counted.offsets()) == (whole.ids, None)
        assert ours.tokenized(text, "", offsets=False).ids == ours.tokenized(text, "").ids


def test_a_prompt_is_read_with_the_text_and_has_no_place_in_it() -> None:
    tokenizer, ours = minilm()
    found = ours.tokenized("héllo word", "query: ")
    assert list(found.ids) == tokenizer.encode("query: héllo word").ids
    assert found.offsets() == [(0, 0), (0, 0), (0, 0), (0, 6), (7, 11), (0, 0)]


def test_a_second_initial_token_is_dropped_as_in_generation() -> None:
    tokenizer, prompts = generation("codellama")
    found = prompts.tokenized(Plain("<s>ab"))
    assert list(found.ids) == list(prompts(Plain("<s>ab")).ids) == tokenizer.encode("<s>ab").ids[1:]
    assert found.offsets() == tokenizer.encode("<s>ab").offsets[1:]


def test_a_chat_has_the_ids_of_its_prompt() -> None:
    _, prompts = generation("codellama")
    chat = Chat((Message("user", "a <s> b"),))
    assert prompts.tokenized(chat).ids == prompts(chat).ids
    assert prompts.tokenized(chat).offsets() is None


def test_pieces_are_what_generation_writes() -> None:
    _, prompts = generation("tiny_coder")
    found = prompts.tokenized(Plain("def é 😀"))
    pieces = [prompts.vocabulary.piece(token) for token in found.ids]
    assert pieces[0] == "def"
    assert "".join(pieces).replace("\N{REPLACEMENT CHARACTER}", "").startswith("def")
    _, ours = minilm()
    named = [ours.vocabulary.piece(token) for token in ours.tokenized("tokenizing", "").ids]
    assert named == ["[CLS]", "token", "##izing", "[SEP]"]


@pytest.mark.parametrize("wrong", [-1, 4096, 2**31 - 1])
def test_an_id_that_does_not_exist_is_refused_with_its_place(wrong: int) -> None:
    _, prompts = generation("tiny_coder")
    with pytest.raises(
        InvalidOption, match=f"token id {wrong} at place 1 does not exist; the model's ids are 0 to 4095"
    ):
        prompts.vocabulary.decode([1, wrong])
    assert prompts.vocabulary.decode([]) == ""


def test_a_token_without_weights_does_not_exist() -> None:
    tokenizer, _ = minilm()
    few = Vocabulary(tokenizer, rows=200)
    with pytest.raises(InvalidOption, match="0 to 199"):
        few.require([200])
