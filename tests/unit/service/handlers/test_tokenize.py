"""The work of `ml.tokenize` on the threads that tokenize."""

from time import thread_time

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from models.tokenized_text import TokenizedText, Vocabulary
from service.handlers.tokenize import _tokenize
from subjects.errors import TooLarge

VOCABULARY = Vocabulary(Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")))


def test_many_short_texts_take_no_longer_than_their_number() -> None:
    """They may come sixty thousand in a message, and a thread that tokenizes is one of few."""
    began = thread_time()
    found = _tokenize(lambda text: TokenizedText([0]), ["a"] * 60_000, VOCABULARY, 100_000)
    assert thread_time() - began < 5
    assert (len(found.counts), len(found.texts)) == (60_000, 60_000)


def test_shown_tokens_are_counted_over_all_texts() -> None:
    with pytest.raises(TooLarge, match="more than"):
        _tokenize(lambda text: TokenizedText([0, 1]), ["a b"] * 3, VOCABULARY, 5)
    assert _tokenize(lambda text: TokenizedText([0, 1]), ["a b"] * 3, VOCABULARY, None).counts == [2, 2, 2]
