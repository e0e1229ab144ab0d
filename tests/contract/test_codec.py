"""The codec: what is read, what is refused and how, and that what is written can be read again."""

import subprocess
import sys

import jsonschema
import msgpack
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter
from scripted_jobs import job

from subjects import codec, names
from subjects.embed import MAX_TEXTS, EmbedBatchRequest, EmbedReply, EmbedRequest, SimilarityRequest
from subjects.errors import InvalidField, Malformed, MLError, NotAcceptable, TooLarge, UnsupportedType
from subjects.finetune import FinetuneReply, FinetuneRequest
from subjects.generate import GenerateBatchRequest, GenerateRequest
from subjects.jobs import JobsCancelRequest, JobsGetRequest
from subjects.message import MAX_TEXT_CHARS

garbage = st.binary(max_size=200)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
fields = st.dictionaries(st.sampled_from([*EmbedRequest.model_fields, "more"]), values, max_size=5)


def read(body: bytes, content_type: str | None = None) -> EmbedRequest:
    return codec.validate(codec.read(body, codec.request_type(content_type, body), EmbedRequest, "text"), EmbedRequest)


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
        (b'{"text": "\\ud800"}', InvalidField, "'text' holds a lone surrogate"),
        (b'{"a\\udc00": 1}', InvalidField, r"a\udc00' holds a lone surrogate"),
        (
            b'{"pairs": [{"negatives": ["a", "\\ud800b"]}]}',
            InvalidField,
            "'pairs.0.negatives.1' holds a lone surrogate",
        ),
        (b'{"text": "\xed\xa0\x80"}', InvalidField, "'text' holds a lone surrogate"),
        (b"\x81\xa4text\xa3\xed\xa0\x80", InvalidField, "'text' holds a lone surrogate"),
        (b"\x81\xa5texts\x92\xa1a\xa4\xed\xa0\x80b", InvalidField, "'texts.1' holds a lone surrogate"),
        (b'["\\ud800"]', InvalidField, "'0' holds a lone surrogate"),
        (b'\xef\xbb\xbf \n{"text":', Malformed, "Content-Type: text/plain"),
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
        (
            b'{"text": "a", "encoding_format": "float"}',
            InvalidField,
            "'float32', 'float16', 'base64', 'array', 'int8' or",
        ),
        (b'{"text": "a", "prompt": "p", "prompt_name": "q"}', InvalidField, "exclude each other"),
        (b'{"text": "\xff"}', InvalidField, "'text' is not UTF-8"),
        (b'{"text": "\xff', Malformed, "unreadable JSON"),
        (b"\x81\xa4text", Malformed, "cut short"),
        (b"\xdf\x00\xff\xff\xff", Malformed, "cut short"),
        (b"\x81\xa4text\xa1\xff", InvalidField, "'text' is not UTF-8"),
        (b"\x81\xa1\xff\xa1a", InvalidField, "is not UTF-8"),
        (b"\x81\xa4text\xa1a\x01", Malformed, "something follows"),
        (b"\x81\xa4text\xc1", Malformed, "begins no value"),
        (b"\x81\xa4text" + b"\x91" * 2000 + b"\xc0", Malformed, "nested too deep"),
        (b"\x81\xa4text\xc7\x03\xff\x00\x00\x00", Malformed, "cannot be read"),
        (b"\x81\xa4text\xd7\xff" + b"\xff" * 8, Malformed, "cannot be read"),
        (b"\x81\xa4text\xc7\x01\x05a", InvalidField, "'text'"),
        (b"\x81\x91\x01\x01", Malformed, "keys of a map"),
        (b"\x81\xc0\x01", Malformed, "keys of a map"),
        (b"\x81\xc4\x04text\xa1a", Malformed, "keys of a map"),
        (b"\x91\xa1a", InvalidField, "rmp_serde::to_vec_named"),
        (b"\xdc\x00\x01\xa1a", InvalidField, "UseArrayEncodedStructs"),
        (b"\xdd\x00\x00\x00\x01\xa1a", InvalidField, "as_array"),
        (b"\xff\xfe", Malformed, "not UTF-8"),
        (b"", InvalidField, "is missing"),
    ],
)
def test_bad_input_is_named(body, error, says):
    with pytest.raises(error) as raised:
        read(body)
    assert says in raised.value.message


@given(st.sampled_from(range(0x80, 0xE0)), st.binary(max_size=60))
def test_what_is_said_of_messagepack_is_in_our_own_words(first, rest):
    for content_type in (None, names.MSGPACK):
        if isinstance(error := outcome(bytes([first]) + rest, content_type), MLError):
            assert not {"unpack(b)", "Unpack", "FormatError", "StackError", "exceeds", "b'"} & set(
                error.message.split()
            )


@pytest.mark.parametrize(
    ("sent", "message", "says"),
    [
        ({"pairs": [{"anchor": "a", "postive": "b"}]}, FinetuneRequest, "unknown field 'pairs.0.postive'; the fields"),
        ({"pairs": [{"anchor": "a", "postive": "b"}]}, FinetuneRequest, "are anchor, positive, negatives"),
        (
            {"path": "x", "options": {"epoch": 1}},
            FinetuneRequest,
            "unknown field 'options.epoch'; the fields are method",
        ),
        ({"path": "x", "options": {1: 1}}, FinetuneRequest, "unknown field 'options.1'"),
        (
            {"messages": [{"rol": "user"}]},
            GenerateRequest,
            "unknown field 'messages.0.rol'; the fields are role, content",
        ),
        (
            {"prompts": ["a"], "promts": 1},
            GenerateBatchRequest,
            "unknown field 'promts'; the fields are model, max_tokens",
        ),
        ({"messages": [[[{"rol": 1}]]]}, GenerateRequest, "field 'messages.0' must be a map"),
    ],
)
def test_a_typo_is_named_with_the_fields_at_its_place(sent, message, says):
    with pytest.raises(InvalidField) as raised:
        codec.validate(sent, message)
    assert says in raised.value.message


@pytest.mark.parametrize("request_type", [JobsGetRequest, JobsCancelRequest])
def test_a_job_is_asked_for_under_either_name(request_type):
    assert {codec.validate({name: "j1"}, request_type).job_id for name in ("id", "job")} == {"j1"}
    schema = TypeAdapter(request_type).json_schema()
    for sent in ({}, {"id": "j1", "job": "j2"}):
        with pytest.raises(InvalidField, match=r"'id'.*'job'"):
            codec.validate(sent, request_type)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({}, schema)
    for sent in ({"job": "j1"}, {"id": "j1", "job": "j1"}):  # an answer of ours has both
        assert codec.validate(sent, request_type).job_id == "j1"
        jsonschema.validate(sent, schema)


@pytest.mark.parametrize("word", ["Über", "Ýmir", "Þór", "ß"])
def test_text_in_another_encoding_is_no_messagepack(word):
    body = word.encode("latin-1") + b" alles"
    assert codec.request_type(None, body) == names.TEXT


def test_a_reply_names_its_job_twice_and_is_read_from_an_older_worker():
    for read in (FinetuneReply.model_validate({"job": "j1", "duplicate": False}), job("queued")):
        assert {msgpack.unpackb(codec.dumps(read, names.MSGPACK))[name] for name in ("id", "job")} == {"j1"}


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
        (b"\x91", names.MSGPACK),
        (b"\xdc\x00\x10", names.MSGPACK),
        (b"\xdd\x00", names.MSGPACK),
        ("ܐ".encode(), names.TEXT),
        ("ݐ".encode(), names.TEXT),
        (b"def f():", names.TEXT),
        (b"", names.TEXT),
        (b'\n{"text":"hello"}', names.JSON),
        (b"  \r\n\t[1]", names.JSON),
        (b'\xef\xbb\xbf{"text":"hello"}', names.JSON),
        (b'\xef\xbb\xbf \n{"text":"hello"}', names.JSON),
        (b"\n x{", names.TEXT),
        (b"\xef\xbb\xbfx", names.TEXT),
        (b" \x81\xa4text\xa1a", names.TEXT),
    ],
)
def test_the_first_byte_tells_the_type(body, kind):
    assert codec.request_type(None, body) == kind


@pytest.mark.parametrize("before", [b"", b"\n", b"  ", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n\t"])
def test_what_editors_put_before_a_body_is_no_part_of_it(before):
    assert read(before + b'{"text":"hello"}').text == "hello"
    assert read(before + b'{"text":"hello"}', names.JSON).text == "hello"
    assert read(before + b"hello").text == before.removeprefix(b"\xef\xbb\xbf").decode() + "hello"


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
        assert codec.validate(codec.read(b"", content_type, Filter), Filter) == Filter()
    with pytest.raises(InvalidField, match="'texts' is missing"):
        codec.validate(codec.read(b"", names.TEXT, EmbedBatchRequest), EmbedBatchRequest)
    with pytest.raises(UnsupportedType):
        codec.validate(codec.read(b"x", names.TEXT, Filter), Filter)


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
