"""The messages of `ml.generate`: what is refused and by which name, and that the rest comes through every codec."""

import json
import math

import jsonschema
import msgpack
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from subjects import codec, names
from subjects.embed import EmbedReply
from subjects.errors import Busy, InvalidField, Malformed, MLError, NotAcceptable, TooLarge
from subjects.generate import (
    Choice,
    CompletionEnd,
    GenerateBatchReply,
    GenerateBatchRequest,
    GenerateDone,
    GenerateFailure,
    GenerateReply,
    GenerateRequest,
    GenerateResult,
    GenerateUsage,
    TokenFrame,
    TokenLogprob,
    TopLogprob,
)
from subjects.message import MAX_TEXT_CHARS, PingFrame

EVERY_OPTION = {
    "model": "tiny_coder",
    "max_tokens": 9,
    "min_tokens": 3,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "presence_penalty": -0.5,
    "frequency_penalty": 2,
    "logit_bias": {0: -100, 2**31 - 1: 100.0},
    "logprobs": 20,
    "n": 16,
    "seed": 2**64 - 1,
    "stop": ["\n\n", "é"],
    "stop_token_ids": [0, 7],
    "echo": True,
    "stream": "auto",
}


TEXT_PART = {"type": "text", "text": "a"}


def read(body: bytes, content_type: str | None = None) -> GenerateRequest:
    return codec.validate(
        codec.read(body, codec.request_type(content_type, body), GenerateRequest, "prompt"), GenerateRequest
    )


def asked(**fields) -> GenerateRequest:
    return codec.validate({"prompt": "x", **fields}, GenerateRequest)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", ""),
        ("max_tokens", 0),
        ("max_tokens", 2**40),
        ("max_tokens", 5.0),
        ("max_tokens", True),
        ("max_tokens", None),
        ("min_tokens", -1),
        ("min_tokens", 257),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", -1),
        ("temperature", 10**9),
        ("temperature", "0.5"),
        ("temperature", True),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("top_k", 2**31),
        ("top_k", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.inf),
        ("presence_penalty", 2.1),
        ("presence_penalty", math.nan),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", math.nan),
        ("logit_bias", {5: 101}),
        ("logit_bias", {5: math.nan}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {2**31: 1}),
        ("logit_bias", {True: 1}),
        ("logit_bias", {"five": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"05": 1}),
        ("logit_bias", {"9" * 10: 1}),
        ("logit_bias", [5]),
        ("logprobs", 21),
        ("logprobs", -1),
        ("logprobs", True),
        ("n", 0),
        ("n", 1000),
        ("num_beams", 0),
        ("num_beams", 9),
        ("length_penalty", math.inf),
        ("length_penalty", 2.0),
        ("seed", -1),
        ("seed", 2**64),
        ("seed", 1.0),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", "a" * 257),
        ("stop", ["stop"] * 100),
        ("stop", {"a": 1}),
        ("stop", [5]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", list(range(17))),
        ("stop_token_ids", 5),
        ("echo", 1),
        ("prompt", ""),
        ("prompt", "a\0b"),
        ("prompt", 5),
        ("prompt", ["x"]),
        ("promt", "x"),
        ("stream", "yes"),
    ],
)
def test_a_bad_value_is_refused_by_name(name, value):
    for request in (GenerateRequest, GenerateBatchRequest):
        given = {"prompt": "x"} if request is GenerateRequest else {"prompts": ["x"]}
        with pytest.raises((InvalidField, TooLarge), match=rf"'{name}\b"):
            codec.validate({**given, name: value}, request)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "send one of 'prompt'"),
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}]}, "send one of 'prompt'"),
        ({"prompt": "x", "suffix": "y"}, "send one of 'prompt'"),
        ({"prefix": "x"}, "'prefix' and 'suffix'"),
        ({"suffix": "x"}, "'prefix' and 'suffix'"),
        ({"prefix": "", "suffix": ""}, "'prefix' and 'suffix' are both empty"),
        ({"prefix": "\0", "suffix": ""}, "'prefix'"),
        ({"prefix": "a", "suffix": "b", "echo": True}, "'echo'"),
        ({"prompt": "x", "max_tokens": 0}, "'max_tokens' is 0.*send 'echo' too"),
        ({"prefix": "a", "suffix": "b", "max_tokens": 0}, "'max_tokens' is 0.*send 'echo' too"),
        ({"prefix": "a", "suffix": "b", "max_tokens": 0, "echo": True}, "'echo' is for a 'prompt'"),
        ({"prompt": "x", "max_tokens": 0, "echo": True, "num_beams": 2}, "'max_tokens' is 0, and beams"),
        ({"prompt": "x", "max_tokens": 0, "echo": True, "min_tokens": 1}, "'min_tokens' is 1, above"),
        ({"messages": []}, "'messages'"),
        ({"messages": "hello"}, "'messages'"),
        ({"messages": ["hello"]}, r"'messages\.0' must be a map"),
        ({"messages": [{"role": "user"}]}, r"messages\.0\.content"),
        ({"messages": [{"role": "critic", "content": "x"}]}, r"messages\.0\.role"),
        ({"messages": [{"role": "user", "content": None}]}, r"messages\.0\.content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, r"messages\.0\.content': part 0 is not \{'type': 'text'"),
        ({"messages": [{"role": "user", "content": [TEXT_PART, {"type": "image_url"}]}]}, "content': part 1 is not"),
        ({"messages": [{"role": "user", "content": [TEXT_PART | {"text": 5}]}]}, "text of part 0 is not a string"),
        ({"messages": [{"role": "user", "content": [TEXT_PART | {"text": "a\0"}]}]}, "NUL"),
        ({"prompt": "x", "continue_final": True}, "whose last turn is the assistant's"),
        (
            {"messages": [{"role": "user", "content": "x"}], "continue_final": True},
            "whose last turn is the assistant's",
        ),
        ({"messages": [{"role": "user", "content": "x", "name": "me"}]}, r"messages\.0\.name"),
        ({"prompt": "x", "num_beams": 2, "n": 2}, "'n' and 'num_beams'"),
        ({"prompt": "x", "num_beams": 2, "temperature": 0.5, "top_k": 5}, "'temperature', 'top_k' and 'num_beams'"),
        ({"prompt": "x", "num_beams": 2, "top_p": 0.5}, "'top_p'"),
        ({"prompt": "x", "num_beams": 2, "min_p": 0.5}, "'min_p'"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(fields, says):
    with pytest.raises(InvalidField, match=says):
        codec.validate(fields, GenerateRequest)


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        (b"", InvalidField, "'prompt'"),
        (b"{}", InvalidField, "'prompt'"),
        (b'{"prompt": ""}', InvalidField, "'prompt'"),
        (b'{"prompt": "x", "temperature": NaN}', Malformed, "unreadable JSON"),
        (b'{"prompt": "x", "temperature": 1e999}', MLError, ""),
        (b'{"prompt": "x", "stream": "yes"}', InvalidField, "field 'stream': send true, false or \"auto\""),
        (b'{"prompt": "x", "stream": 1}', InvalidField, "field 'stream': send true, false or \"auto\""),
        (b'{"prompt": "x", "seed": 18446744073709551616}', InvalidField, "'seed'"),
        (b'{"prompt": "x", "logit_bias": {"five": 1}}', InvalidField, "'logit_bias'"),
        (b"\xff\xfe", Malformed, "not UTF-8"),
        (b"\x81\xa6prompt\xa1\xff", InvalidField, "not UTF-8"),
        (msgpack.packb({5: 1}), InvalidField, "unknown field '5'"),
        (msgpack.packb({"prompt": "x", "logit_bias": {1.5: 1}}), Malformed, "keys"),
        (msgpack.packb({"prompt": "x", "logit_bias": dict.fromkeys(range(5000), 1)}), Malformed, "whole numbers"),
        (msgpack.packb({"prompt": "x", "logit_bias": dict.fromkeys(range(1025), 1)}), TooLarge, "'logit_bias'"),
    ],
)
def test_a_bad_body_is_named(body, error, says):
    with pytest.raises(error) as raised:
        read(body)
    assert says in raised.value.message


def test_too_much_is_413_and_names_the_limit():
    with pytest.raises(TooLarge, match=f"'prompt'.*{MAX_TEXT_CHARS}"):
        read(b"x" * (MAX_TEXT_CHARS + 1))
    with pytest.raises(TooLarge, match=r"'prompts'.*256"):
        codec.validate({"prompts": ["x"] * 257}, GenerateBatchRequest)
    with pytest.raises(TooLarge, match=r"'messages'.*256"):
        codec.validate({"messages": [{"role": "user", "content": "x"}] * 257}, GenerateRequest)


def test_each_prompt_of_a_batch_is_named_by_its_place():
    with pytest.raises(InvalidField, match=r"prompts\.1"):
        codec.validate({"prompts": ["a", "", "c"]}, GenerateBatchRequest)
    with pytest.raises(InvalidField, match="'prompts'"):
        codec.validate({"prompts": []}, GenerateBatchRequest)


def test_every_option_comes_through_both_codecs():
    request = asked(**EVERY_OPTION)
    assert {name: getattr(request, name) for name in EVERY_OPTION} == EVERY_OPTION
    assert read(codec.dumps(request, names.MSGPACK)) == request
    in_json = {**EVERY_OPTION, "prompt": "x", "logit_bias": {"0": -100, "2147483647": 100.0}}
    assert read(orjson.dumps(in_json)) == request


def test_the_defaults_leave_it_to_the_model():
    request = read(b"def fib(n):")
    assert (request.prompt, request.max_tokens, request.n, request.num_beams) == ("def fib(n):", 256, 1, 1)
    left = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "logprobs")
    assert [getattr(request, name) for name in left] == [None] * len(left)


@pytest.mark.parametrize("stop", ["\n", ["\n"]])
def test_one_stop_string_needs_no_list(stop):
    assert asked(stop=stop).stop == ["\n"]


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": " \n"},
        {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]},
        {"prefix": "def f(", "suffix": ""},
        {"prefix": "", "suffix": "return 1"},
        {"prompt": "x", "max_tokens": 0, "echo": True, "logprobs": 0},
        {"prompt": "x", "num_beams": 8, "length_penalty": -10, "temperature": 0, "seed": 4, "stop": []},
    ],
)
def test_the_three_forms_are_taken(fields):
    assert read(msgpack.packb(fields)) == read(orjson.dumps(fields)) == codec.validate(fields, GenerateRequest)


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_a_prompt_is_the_same_in_every_encoding(text):
    assert read(text.encode(), names.TEXT).prompt == text
    assert read(orjson.dumps({"prompt": text})).prompt == text
    assert read(msgpack.packb({"prompt": text})).prompt == text


values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=3)


@given(st.dictionaries(st.sampled_from([*GenerateRequest.model_fields, "more"]), values, max_size=6))
def test_any_fields_are_a_request_or_a_clear_error(sent):
    outcome = validated(sent)
    if isinstance(outcome, MLError):
        assert outcome.code in (413, 422)
        assert outcome.message
    else:
        assert outcome.prompt or outcome.prefix or outcome.suffix


def validated(sent: dict) -> GenerateRequest | MLError:
    try:
        return codec.validate(sent, GenerateRequest)
    except MLError as error:
        return error


def test_the_schema_takes_what_the_message_takes():
    schema = TypeAdapter(GenerateRequest).json_schema()
    in_json = json.loads(orjson.dumps({**EVERY_OPTION, "prompt": "x"}, option=orjson.OPT_NON_STR_KEYS))
    for sent in (in_json, {"prompt": "x", "stop": "\n"}):
        jsonschema.validate(sent, schema)
    for bad in ({"prompt": ""}, {"prompt": "x", "stop": ""}, {"prompt": "x", "n": 17}, {"prompt": "x", "more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


# Replies and frames

USAGE = GenerateUsage(prompt_tokens=5, cached_tokens=4, completion_tokens=2)
SERVED = {"model": "tiny_coder", "version": "abc-fp32", "usage": USAGE}
END = {"finish_reason": "stop", "stop_reason": "é\n", "seed": 2**64 - 1}


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
@pytest.mark.parametrize(
    ("content", "text"), [("", ""), ([], ""), ([TEXT_PART], "a"), ([TEXT_PART, {"text": "b", "type": "text"}], "a\nb")]
)
def test_a_turn_may_be_empty_or_in_parts(role, content, text):
    fields = {"messages": [{"role": role, "content": content}]}
    (turn,) = codec.validate(fields, GenerateRequest).messages
    assert (turn.role, turn.content) == (role, text)
    jsonschema.validate(fields, TypeAdapter(GenerateRequest).json_schema())


LOGPROBS = [TokenLogprob(token="a", id=5, logprob=-0.5, top=[TopLogprob(token="b", id=6, logprob=-1.25)])]
MESSAGES = [
    GenerateReply(**SERVED, **END, text="é"),
    GenerateReply(
        **SERVED, **END, text="a", logprobs=LOGPROBS, choices=[Choice(**END, choice=c, text="a") for c in (0, 1)]
    ),
    GenerateBatchReply(
        **SERVED,
        results=[
            GenerateResult(**END, text="a", usage=USAGE),
            GenerateResult(
                finish_reason="error",
                seed=1,
                text="",
                usage=GenerateUsage(),
                error=GenerateFailure(code=413, message="too long"),
            ),
        ],
    ),
    TokenFrame(text="a", index=1, choice=0, logprobs=LOGPROBS),
    TokenFrame(text="ab", logprobs=[TokenLogprob(token="a", id=7, bytes=[97]), *LOGPROBS]),
    TokenFrame(seq=3, text=" "),
    PingFrame(seq=1),
    GenerateDone(**SERVED, finish_reason="stop", stop_reason=7, seed=0),
    GenerateDone(**SERVED, **END, choices=[CompletionEnd(**END, index=1, choice=0, usage=USAGE)]),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("content_type", [names.JSON, names.MSGPACK])
def test_a_reply_comes_back_as_it_was(message, content_type):
    body = codec.dumps(message, content_type)
    assert type(message).model_validate(codec.loads(body, content_type)) == message


def test_what_was_not_asked_for_is_absent():
    assert orjson.loads(codec.dumps(TokenFrame(seq=2, text="a"), names.JSON)) == {"seq": 2, "text": "a"}
    first = orjson.loads(codec.dumps(TokenFrame(text="a", logprobs=[TokenLogprob(token="a", id=7)]), names.JSON))
    assert first["logprobs"] == [{"token": "a", "id": 7, "bytes": [], "top": []}]
    fields = orjson.loads(codec.dumps(GenerateReply(**SERVED, finish_reason="length", seed=9, text=""), names.JSON))
    assert set(fields) == {"model", "version", "usage", "text", "finish_reason", "seed"}


def test_a_reply_with_many_logprobs_can_be_read():
    many = TokenFrame(text="a", logprobs=LOGPROBS * 2000)
    body = codec.dumps(many, names.MSGPACK)
    assert TokenFrame.model_validate(codec.loads(body, names.MSGPACK)) == many


def test_a_request_of_many_lists_is_still_refused():
    with pytest.raises(Malformed, match="4096 lists and maps"):
        read(msgpack.packb({"prompt": [[]] * 5000}))


# Plain text


def test_text_in_is_text_out_where_the_reply_has_that_form():
    assert codec.reply_type(None, names.TEXT, text=True) == names.TEXT
    assert codec.reply_type("text/plain", names.JSON, text=True) == names.TEXT
    assert codec.reply_type("application/json", names.TEXT, text=True) == names.JSON
    assert codec.reply_type("*/*", names.TEXT, text=True) == names.TEXT
    assert codec.reply_type(None, names.MSGPACK, text=True) == names.MSGPACK
    assert codec.reply_type(None, names.TEXT) == names.JSON
    with pytest.raises(NotAcceptable):
        codec.reply_type("text/plain", names.TEXT)
    with pytest.raises(NotAcceptable, match="text/plain"):
        codec.reply_type("text/html", names.TEXT, text=True)


def test_a_text_reply_is_the_bare_text_and_the_rest_a_header():
    reply = GenerateReply(**SERVED, **END, text="é\n")
    assert codec.dumps(reply, names.TEXT) == "é\n".encode()
    (header,) = codec.text_headers(reply).items()
    assert header[0] == "Ml-Result"
    assert header[1].isascii()
    assert header[1].isprintable()
    assert json.loads(header[1]) == {**SERVED, **END, "usage": dict(USAGE)}


def test_a_text_stream_is_the_text_and_a_line_break():
    done = GenerateDone(**SERVED, finish_reason="length", seed=5, seq=2)
    frames = [TokenFrame(seq=0, text="def"), TokenFrame(seq=1, text=" f"), done]
    assert b"".join(codec.dumps(frame, names.TEXT) for frame in frames) == b"def f\n"
    assert [len(codec.text_headers(frame)) for frame in frames] == [0, 0, 1]
    assert "stop_reason" not in codec.text_headers(done)["Ml-Result"]


def test_an_error_in_text_is_one_line():
    assert codec.dumps_error(Busy("this worker is full"), "id-1", names.TEXT) == b"error 429: this worker is full\n"
    in_json = orjson.loads(codec.dumps_error(Busy("full"), "id-1", names.JSON))
    assert in_json["error"]["request_id"] == "id-1"


def test_what_has_no_text_form_is_not_sent_as_text():
    with pytest.raises(TypeError, match="no text form"):
        codec.dumps(EmbedReply.model_construct(), names.TEXT)


# The context of a gap


GAP = {"prefix": "a", "suffix": "b"}


def test_a_gap_may_have_files_of_its_repository():
    request = read(json.dumps({**GAP, "context": [{"path": "p", "text": ""}], "path": "q", "repository": "r"}).encode())
    assert (request.context[0].path, request.context[0].text, request.path, request.repository) == ("p", "", "q", "r")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prompt": "a", "context": []}, "field 'context' is for 'prefix' and 'suffix'"),
        ({"prompt": "a", "path": "p"}, "field 'path' is for"),
        ({"tokens": [1], "repository": "p"}, "field 'repository' is for"),
        ({**GAP, "context": [{"path": "p"}]}, "'context.0.text' is missing"),
        ({**GAP, "context": [{"path": "p", "text": "t", "name": "n"}]}, "unknown field 'context.0.name'"),
        ({**GAP, "context": [{"path": "a\nb", "text": "t"}]}, "line break or a control character"),
        ({**GAP, "context": [{"path": "", "text": "t"}]}, "context.0.path"),
        ({**GAP, "context": [{"path": "p", "text": "\0"}]}, "NUL"),
        ({**GAP, "path": 5}, "'path'"),
        ({**GAP, "tokens": [1]}, "send one of"),
    ],
)
def test_a_context_that_cannot_be_read_is_named(fields, says):
    with pytest.raises(InvalidField) as raised:
        read(json.dumps(fields).encode())
    assert says in raised.value.message


def test_a_context_has_a_bound():
    with pytest.raises(TooLarge, match="context"):
        read(json.dumps({**GAP, "context": [{"path": "p", "text": "t"}] * 257}).encode())
