"""The codec: what is read, what is refused and how, and that what is written can be read again."""

import subprocess
import sys

import msgpack
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from subjects import codec, names
from subjects.embed import (
    MAX_TEXT_CHARS,
    MAX_TEXTS,
    EmbedBatchRequest,
    EmbedReply,
    EmbedRequest,
)
from subjects.errors import InvalidField, Malformed, MLError, NotAcceptable, TooLarge, UnsupportedType
from subjects.similarity import SimilarityRequest

garbage = st.binary(max_size=200)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.dictionaries(st.sampled_from([*EmbedRequest.model_fields, "more"]), values, max_size=5)


def read(body: bytes, content_type: str | None = None) -> EmbedRequest:
    return codec.decode(body, codec.request_type(content_type, body), EmbedRequest, "text")


def outcome(body: bytes, content_type: str | None) -> EmbedRequest | MLError:
    try:
        return read(body, content_type)
    except MLError as error:
        return error


@given(garbage, st.sampled_from([None, names.JSON, names.MSGPACK, names.TEXT]))
def test_any_bytes_are_a_request_or_a_clear_error(body, content_type):
    result = outcome(body, content_type)
    if isinstance(result, MLError):
        assert result.code in (400, 413, 415, 422)
        assert result.message
    else:
        assert result.text.strip()


@given(fields.filter(lambda sent: _packable(sent)))
def test_any_fields_are_a_request_or_a_clear_error(sent):
    result = outcome(msgpack.packb(sent), names.MSGPACK)
    assert isinstance(result, EmbedRequest) or result.code in (400, 413, 422)


def _packable(value) -> bool:
    try:
        msgpack.packb(value)
    except (OverflowError, ValueError, UnicodeEncodeError):
        return False
    return True


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        (b'{"text":', Malformed, "Content-Type: text/plain"),
        (b'{"text": NaN}', Malformed, "unreadable JSON"),
        (b'{"text": "\\ud800"}', Malformed, "surrogate"),
        (b"[" * 5000, Malformed, "unreadable JSON"),
        (b"[1]", InvalidField, "map of fields"),
        (b"{}", InvalidField, "'text' is missing"),
        (b'{"text": 5}', InvalidField, "'text'"),
        (b'{"text": "a", "txet": 1}', InvalidField, "unknown field 'txet'"),
        (b'{"text": ""}', InvalidField, "empty or blank"),
        (b'{"text": " \\n\\t"}', InvalidField, "empty or blank"),
        (b'{"text": "a\\u0000b"}', InvalidField, "NUL"),
        (b'{"text": "a", "dimensions": 0}', InvalidField, "'dimensions'"),
        (b'{"text": "a", "dimensions": 1.5}', InvalidField, "'dimensions'"),
        (b'{"text": "a", "normalize": "yes"}', InvalidField, "'normalize'"),
        (b'{"text": "a", "truncate": "middle"}', InvalidField, "'truncate'"),
        (b'{"text": "a", "priority": "now"}', InvalidField, "'interactive' or 'bulk'"),
        (b'{"text": "a", "task": ""}', InvalidField, "'task'"),
        (b'{"text": "a", "encoding_format": "float"}', InvalidField, "'float32', 'float16', 'base64', 'int8' or"),
        (b'{"text": "a", "prompt": "p", "prompt_name": "q"}', InvalidField, "exclude each other"),
        (b"\x81\xa4text", Malformed, "MessagePack"),
        (b"\x81\xa4text\xa1\xff", Malformed, "not UTF-8"),
        (b"\x81\xa4text\xa1a\x01", Malformed, "MessagePack"),
        (b"\xdf\x00\xff\xff\xff", Malformed, "MessagePack"),
        (b"\xff\xfe", Malformed, "not UTF-8"),
        (b"", InvalidField, "empty or blank"),
    ],
)
def test_bad_input_is_named(body, error, says):
    with pytest.raises(error) as raised:
        read(body)
    assert says in raised.value.message


def test_too_much_is_413_and_names_the_limit():
    with pytest.raises(TooLarge, match=str(MAX_TEXT_CHARS)):
        read(b"x" * (MAX_TEXT_CHARS + 1))
    with pytest.raises(TooLarge, match=str(MAX_TEXTS)):
        codec.validate({"texts": ["x"] * (MAX_TEXTS + 1)}, EmbedBatchRequest)


def test_a_fault_inside_a_list_is_named_by_its_place():
    with pytest.raises(InvalidField, match=r"texts\.1"):
        codec.validate({"texts": ["a", " ", "c"]}, EmbedBatchRequest)


@pytest.mark.parametrize(
    "sent", [{"a": "x"}, {"a": "x", "b": "y", "query": "z"}, {"query": "x"}, {}, {"a": "x", "b": "y", "top_k": 1}]
)
def test_similarity_takes_one_form_or_the_other(sent):
    with pytest.raises(InvalidField, match="either 'a' and 'b'"):
        codec.validate(sent, SimilarityRequest)


@given(st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text))
def test_a_text_is_the_same_in_every_encoding(text):
    plain = {"text": text}
    assert read(text.encode(), names.TEXT).text == text
    assert read(orjson.dumps(plain)).text == text
    assert read(msgpack.packb(plain)).text == text


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"a":1}', names.JSON),
        (b"[1]", names.JSON),
        (b"\x81", names.MSGPACK),
        (b"\xde\x00", names.MSGPACK),
        (b"def f():", names.TEXT),
        (b"", names.TEXT),
    ],
)
def test_the_first_byte_tells_the_type(body, kind):
    assert codec.request_type(None, body) == kind


@pytest.mark.parametrize(
    ("header", "kind"),
    [
        ("application/json; charset=utf-8", names.JSON),
        ("APPLICATION/MSGPACK", names.MSGPACK),
        ("application/x-msgpack", names.MSGPACK),
        ("text/plain", names.TEXT),
    ],
)
def test_the_header_wins_over_the_first_byte(header, kind):
    assert codec.request_type(header, b"{") == kind


@pytest.mark.parametrize("header", ["image/png", "text/plain; charset=latin-1", "x", ";"])
def test_an_unsupported_content_type_is_415(header):
    with pytest.raises(UnsupportedType):
        codec.request_type(header, b"x")


@pytest.mark.parametrize(
    ("accept", "request_type", "reply"),
    [
        (None, names.TEXT, names.JSON),
        (None, names.MSGPACK, names.MSGPACK),
        ("*/*", names.MSGPACK, names.MSGPACK),
        ("application/msgpack", names.JSON, names.MSGPACK),
        ("text/html, application/json;q=0.5", names.MSGPACK, names.JSON),
        ("application/json;q=0.2, application/msgpack;q=0.9", names.JSON, names.MSGPACK),
    ],
)
def test_accept_chooses_the_reply(accept, request_type, reply):
    assert codec.reply_type(accept, request_type) == reply


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "nonsense"])
def test_an_accept_that_nothing_fits_is_406(accept):
    with pytest.raises(NotAcceptable):
        codec.reply_type(accept, names.JSON)


def test_an_empty_body_is_an_empty_map_where_no_text_is_meant():
    class Filter(BaseModel):
        kind: str | None = None

    for content_type in (names.TEXT, names.JSON, names.MSGPACK):
        assert codec.decode(b"", content_type, Filter) == Filter()
    with pytest.raises(InvalidField, match="'texts' is missing"):
        codec.decode(b"", names.TEXT, EmbedBatchRequest)
    with pytest.raises(UnsupportedType):
        codec.decode(b"x", names.TEXT, Filter)


def test_a_client_reads_replies_of_a_newer_worker():
    newer = {
        "model": "m",
        "version": "v",
        "usage": {"tokens": 1, "more": 2},
        "embedding": [1.0],
        "dimensions": 1,
        "more": 3,
    }
    assert EmbedReply.model_validate(newer).dimensions == 1


def test_subjects_is_light():
    heavy = "{'torch', 'transformers', 'sentence_transformers', 'service', 'models', 'onnxruntime'}"
    check = f"import sys, subjects; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
