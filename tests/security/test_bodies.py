"""No body holds up the event loop, which all other requests share, and none of code is taken for one that would."""

import json
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from subjects import codec, names, untrusted
from subjects.embed import MAX_TEXTS, EmbedBatchRequest
from subjects.errors import Malformed, MLError
from subjects.finetune import FinetuneRequest

SIZE = 2**23 - 2000


def filled(before: bytes, each: bytes, after: bytes) -> bytes:
    """A body of about 8 MB."""
    return before + each * ((SIZE - len(before) - len(after)) // len(each)) + after


BOMBS = {
    "empty maps": filled(b'{"texts":[', b"{},", b"{}]}"),
    "empty lists, cut short": filled(b'{"texts":[', b"[],", b"[]}"),
    "nested": filled(b'{"texts":[', b"[" * 900 + b"]" * 900 + b",", b"1]}"),
    "maps in maps": filled(b'{"texts":[', b'{"a":' * 400 + b"1" + b"}" * 400 + b",", b"1]}"),
    "behind quotes in a string": filled(b'{"texts":["\\\\\\"",', b"[],", b"1]}"),
    "pairs": filled(b'{"pairs":[', b"{},", b"{}]}"),
    "numbers": filled(b'{"texts":[', b"0,", b"0]}"),
    "unknown names": b"{" + b",".join(b'"%x":1' % name for name in range(700_000)) + b"}",
    "few and wrong": b'{"texts":[' + b"[]," * 65000 + b"1]}",
    "pairs that are few and wrong": b'{"pairs":[' + b"{}," * 65000 + b"1]}",
    "not UTF-8 at the end": filled(b'{"texts":[', b"[],", b'"\xff"]}'),
    "lone surrogate at the end": filled(b'{"texts":[', b'"",', b'"\\ud800"]}'),
}


@pytest.mark.parametrize("message", [EmbedBatchRequest, FinetuneRequest])
@pytest.mark.parametrize("body", BOMBS.values(), ids=BOMBS.keys())
def test_what_is_no_request_is_refused_in_little_time(body: bytes, message: Any) -> None:
    began = time.process_time()
    with pytest.raises(MLError):
        codec.validate(codec.read(body, names.JSON, message), message)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("text", ["{[(" * 20, '\\"{[', '{"a": [{}, {}]}\n', "\\\\", '"""{{[', "é[{"])
@pytest.mark.parametrize("dumps", [orjson.dumps, lambda fields: json.dumps(fields).encode()])
def test_code_may_hold_any_number_of_braces(text: str, dumps: Any) -> None:
    texts = [text * (SIZE // 30 // len(dumps(text)))] * 29
    body = dumps({"texts": texts})
    assert codec.validate(codec.read(body, names.JSON, EmbedBatchRequest), EmbedBatchRequest).texts == texts


def test_as_many_texts_as_a_request_may_hold_are_read() -> None:
    body = orjson.dumps({"texts": ["f[{"] * MAX_TEXTS})
    assert len(codec.read(body, names.JSON, EmbedBatchRequest)["texts"]) == MAX_TEXTS


values = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('[{"\\]}, é\n')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('[{"\\')), inner),
)


def containers(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, dict | list) + sum(map(containers, inner))


@given(values)
def test_lists_and_maps_are_counted_and_nothing_in_strings(value: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        count = containers({"texts": value})
        patch.setattr(untrusted, "_CHUNK_BYTES", 3)
        patch.setattr(untrusted, "MAX_JSON_CONTAINERS", count)
        assert codec.read(json.dumps({"texts": value}).encode(), names.JSON, EmbedBatchRequest) is not None
        patch.setattr(untrusted, "MAX_JSON_CONTAINERS", count - 1)
        with pytest.raises(Malformed, match="lists and maps"):
            codec.read(json.dumps({"texts": value}).encode(), names.JSON, EmbedBatchRequest)
