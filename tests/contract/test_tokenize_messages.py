"""The messages of `ml.tokenize` and `ml.detokenize`: one text or several, and what is refused by name."""

import json
import re

import msgpack
import pytest

from subjects import codec, names
from subjects.errors import InvalidField, Malformed, TooLarge
from subjects.message import MAX_ID_LISTS, MAX_IDS
from subjects.tokenize import (
    DetokenizeRequest,
    TokenizedText,
    TokenizeReply,
    TokenizeRequest,
)

CHAT = [{"role": "user", "content": "a"}]


def tokenize(fields: object, content_type: str = names.JSON) -> TokenizeRequest:
    body = json.dumps(fields).encode() if content_type == names.JSON else msgpack.packb(fields)
    return codec.validate(codec.read(body, content_type, TokenizeRequest, "text"), TokenizeRequest)


def detokenize(fields: object, content_type: str = names.JSON) -> DetokenizeRequest:
    body = json.dumps(fields).encode() if content_type == names.JSON else msgpack.packb(fields)
    return codec.validate(codec.read(body, content_type, DetokenizeRequest), DetokenizeRequest)


@pytest.mark.parametrize("content_type", [names.JSON, names.MSGPACK])
def test_one_or_several(content_type):
    assert tokenize({"text": ""}, content_type).text == [""]
    assert tokenize({"text": ["a\0", "😀\r\n"]}, content_type).text == ["a\0", "😀\r\n"]
    assert detokenize({"tokens": [1, 2]}, content_type).tokens == [[1, 2]]
    assert detokenize({"tokens": []}, content_type).tokens == [[]]
    assert detokenize({"tokens": [[1], []]}, content_type).tokens == [[1], []]


def test_plain_text_is_the_text():
    assert codec.read(b"def f():", names.TEXT, TokenizeRequest, "text") == {"text": "def f():"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "send either 'text' or 'messages'"),
        ({"text": "a", "messages": CHAT}, "send either"),
        ({"text": []}, "field 'text'"),
        ({"text": [1]}, "field 'text.0'"),
        ({"texts": ["a"]}, "unknown field 'texts'"),
        ({"messages": CHAT, "continue_final": True}, "continue_final"),
        ({"messages": CHAT, "add_special_tokens": False}, "a chat always has"),
        ({"text": "a", "prompt": "p", "prompt_name": "n"}, "exclude each other"),
        ({"text": "a", "count_only": 1}, "count_only"),
    ],
)
def test_what_cannot_be_tokenized_is_named(fields, message):
    with pytest.raises(InvalidField, match=re.escape(message)):
        tokenize(fields)


@pytest.mark.parametrize(
    ("tokens", "where"),
    [
        ("abc", "tokens.0"),
        (None, "tokens.0"),
        ([1.0], "tokens.0.0"),
        ([1, True], "tokens.0.1"),
        ([-1], "tokens.0.0"),
        ([2**31], "tokens.0.0"),
        (["1"], "tokens.0.0"),
        ([[1], 2], "tokens.1"),
        ([1, [2]], "tokens.0.1"),
    ],
)
def test_what_is_no_id_is_named(tokens, where):
    with pytest.raises(InvalidField, match=re.escape(f"field '{where}'")):
        detokenize({"tokens": tokens})


def test_too_many_ids_are_refused():
    with pytest.raises(TooLarge, match="tokens"):
        detokenize({"tokens": [1] * (MAX_IDS + 1)}, names.MSGPACK)
    with pytest.raises(TooLarge, match="tokens"):
        detokenize({"tokens": [[1]] * (MAX_ID_LISTS + 1)}, names.MSGPACK)
    with pytest.raises(Malformed, match="values"):
        detokenize({"tokens": [1] * (MAX_IDS + 1)})
    assert len(detokenize({"tokens": [[1]] * MAX_ID_LISTS}, names.MSGPACK).tokens) == MAX_ID_LISTS


def test_half_a_surrogate_pair_is_refused():
    with pytest.raises(InvalidField, match=r"text\.0' holds a lone surrogate"):
        codec.read(rb'{"text": ["\ud800"]}', names.JSON, TokenizeRequest, "text")


@pytest.mark.parametrize("content_type", [names.JSON, names.MSGPACK])
def test_a_reply_survives_the_wire(content_type):
    shown = TokenizedText(ids=[1, 2], pieces=["a", "�"], offsets=[(0, 1), (1, 3)], special=[0])
    reply = TokenizeReply(model="m", version="v", counts=[2], results=[shown])
    fields = codec.loads(codec.dumps(reply, content_type), content_type)
    assert fields["results"][0]["offsets"] == [[0, 1], [1, 3]]
    assert TokenizeReply.model_validate(fields) == reply
    counted = TokenizeReply(model="m", version="v", counts=[2])
    assert codec.loads(codec.dumps(counted, content_type), content_type) == {
        "model": "m",
        "version": "v",
        "counts": [2],
    }
