"""Whatever is sent over a real server gets exactly one terminal answer of a known code, and leaves nothing behind."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import msgpack
import nats
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats_server import plain_server
from workers import running_worker

from subjects import codec, names
from subjects.errors import CODES
from subjects.names import EncodingFormat

SUBJECTS = [names.EMBED, names.EMBED_BATCH, names.SIMILARITY]
texts = st.text(max_size=40) | st.sampled_from(["poison", "nan", "a b c", "w " * 100, "\0", "é" * 30])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | texts | st.binary(max_size=20)
values = scalars | st.lists(scalars, max_size=5) | st.dictionaries(st.text(max_size=5), scalars, max_size=3)
FIELDS = [
    "text",
    "texts",
    "a",
    "b",
    "query",
    "candidates",
    "top_k",
    "model",
    "dimensions",
    "normalize",
    "prompt",
    "other",
]
FIELDS += ["prompt_name", "truncate", "encoding_format", "task", "priority"]
maps = st.dictionaries(st.sampled_from(FIELDS), values, max_size=5)
plausible = st.fixed_dictionaries(
    {},
    optional={
        "text": texts,
        "texts": st.lists(texts, max_size=6),
        "a": texts,
        "b": texts,
        "encoding_format": st.sampled_from(get_args(EncodingFormat)),
        "normalize": st.none() | st.booleans(),
        "priority": st.sampled_from([None, "interactive", "bulk"]),
    },
)
printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30)
headers = st.dictionaries(
    st.sampled_from(
        ["Content-Type", "accept", "ML-Request-Id", "Ml-Timeout-Ms", "Ml-Stream", "traceparent", "Status", "X"]
    ),
    printable | st.sampled_from([names.JSON, names.MSGPACK, names.TEXT, "true", "auto", "0", "5", "30000", "503"]),
    max_size=4,
)


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value, default=str)
    except TypeError:  # an integer that JSON here does not write
        return b"{"


def _msgpack(value: Any) -> bytes:
    try:
        return bytes(msgpack.packb(value))
    except (OverflowError, UnicodeEncodeError):
        return b"\x81"


bodies = st.binary(max_size=300) | (maps | plausible).map(_json) | (maps | plausible).map(_msgpack)


@dataclass
class Bus:
    """A worker and a client in a thread of their own; `ask` gives every message that a request is answered with."""

    ask: Callable[[str, bytes, dict[str, str]], list[Any]]
    in_flight: Callable[[], int]


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bus]:
    server = plain_server(tmp_path_factory.mktemp("nats")).start()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    serving = running_worker(server.url)
    call(serving.__aenter__())
    nc = call(nats.connect(server.url))
    yield Bus(lambda *sent: call(_ask(nc, *sent)), lambda: call(_in_flight(nc)))
    call(nc.close())
    call(serving.__aexit__(None, None, None))
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()
    server.stop()


async def _ask(nc: Any, subject: str, body: bytes, sent: dict[str, str]) -> list[Any]:
    """All answers, up to a later request's: the worker handles them in turn, and its answers come in order."""
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    await nc.publish(subject, body, reply=inbox, headers=sent or None)
    messages = [await answers.next_msg(timeout=20)]
    while messages[-1].data and _is_closed(sent):
        messages.append(await answers.next_msg(timeout=20))
    await nc.request(names.EMBED, b"a later request", timeout=20)
    await nc.flush()
    assert answers.pending_msgs == 0
    await answers.unsubscribe()
    return messages


def _is_closed(sent: dict[str, str]) -> bool:
    """Whether the sentinel is to follow."""
    return sent.get(names.STREAM, "").strip().lower() in ("true", "1", names.STREAM_AUTO)


async def _in_flight(nc: Any) -> int:
    stats = orjson.loads((await nc.request(f"$SRV.STATS.{names.SERVICE}", timeout=20)).data)
    return int(stats["endpoints"][0]["data"]["in_flight"])


def test_one_terminal_answer_of_a_known_code_and_nothing_left_behind(bus: Bus) -> None:
    @settings(max_examples=400, deadline=None)
    @given(st.sampled_from(SUBJECTS), bodies, headers)
    def check(subject: str, body: bytes, sent: dict[str, str]) -> None:
        _check_answer(bus.ask(subject, body, sent))

    check()
    assert bus.in_flight() == 0  # asked once: a worker answers such questions at a limited rate


def _check_answer(messages: list[Any]) -> None:
    *frames, last = messages
    if frames:
        assert last.data == b""
        assert last.headers is None
        last = frames[-1]
    if names.EVENT in last.headers:
        assert last.headers[names.EVENT] in ("done", "error")
        assert [int(frame.headers[names.SEQ]) for frame in frames] == list(range(len(frames)))
    else:
        assert len(frames) < 2
    code = last.headers.get(names.ERROR_CODE)
    answer = codec.loads(last.data, last.headers[names.CONTENT_TYPE])
    if code is None:
        assert answer["version"] == "fake-fp32"
    else:
        assert int(code) in CODES
        assert answer["error"]["code"] == int(code)
        assert answer["error"]["message"]
