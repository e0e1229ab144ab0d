"""What a worker answers over a real server: vectors, streams, errors; one terminal answer for everything."""

import asyncio
import base64
import json
from contextlib import AsyncExitStack, suppress
from typing import get_args

import msgpack
import nats
import numpy as np
import pytest
from fake_encoder import MAX_TOKENS, FakeEncoder, vector_of, word_id
from gates import entered
from workers import running_worker

from models.encoders.base import PromptsAndTasks, finish
from subjects import MLClient, codec, names, to_float32
from subjects.embed import MAX_TEXTS, EmbedChunk, EmbedDone
from subjects.errors import DeadlinePassed, InvalidField, NotFound, NotServed, TooLarge, Unavailable, VersionChanged
from subjects.names import EncodingFormat


@pytest.fixture
async def encoder():
    encoder = FakeEncoder()
    yield encoder
    encoder.gate.set()


@pytest.fixture
async def nc(nats_url, encoder):
    async with running_worker(nats_url, encoder):
        connection = await nats.connect(nats_url)
        yield connection
        encoder.gate.set()
        await connection.close()


@pytest.fixture
async def ml(nc):
    return MLClient(nc, timeout_s=20)


def expected(text: str) -> np.ndarray:
    return finish(vector_of([word_id(word) for word in text.split()])[None], True)[0]


async def ask(nc, body: bytes, subject: str = names.EMBED, **headers: str):
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return await nc.request(subject, body, timeout=20, headers=sent or None)


def error_of(message) -> dict:
    error = codec.loads(message.data, codec.request_type(None, message.data))["error"]
    assert message.headers[names.ERROR_CODE] == str(error["code"])
    assert message.headers[names.ERROR]
    return error


async def test_text_in_json_out(nc):
    reply = await ask(nc, b"hello world")
    body = json.loads(reply.data)
    np.testing.assert_allclose(body["embedding"], expected("hello world"), atol=1e-6)
    assert (body["model"], body["version"], body["usage"]) == ("minilm", "fake-fp32", {"tokens": 2})
    assert reply.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("before", [b"\n", b"   ", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n"])
async def test_json_behind_white_space_or_a_byte_order_mark_is_json(nc, before):
    body = json.loads((await ask(nc, before + b'{"text": "hello world"}')).data)
    np.testing.assert_allclose(body["embedding"], expected("hello world"), atol=1e-6)


@pytest.mark.parametrize("body", [b'{"texts": ["a", "\\ud800"]}', b"\x81\xa5texts\x92\xa1a\xa3\xed\xa0\x80"])
async def test_what_is_no_text_is_named_with_its_index(nc, body):
    error = error_of(await ask(nc, body, names.EMBED_BATCH))
    assert (error["code"], error["message"]) == (422, "field 'texts.1' holds a lone surrogate; send valid Unicode")


async def test_messagepack_in_float32_bytes_out(nc):
    reply = await ask(nc, msgpack.packb({"text": "hello world"}))
    vector = np.frombuffer(msgpack.unpackb(reply.data)["embedding"], "<f4")
    np.testing.assert_allclose(vector, expected("hello world"), atol=1e-6)


async def test_messagepack_in_numbers_out(nc):
    reply = await ask(nc, msgpack.packb({"texts": ["hello world"], "encoding_format": "array"}), names.EMBED_BATCH)
    body = msgpack.unpackb(reply.data)
    np.testing.assert_allclose(body["embeddings"], [expected("hello world")], atol=1e-6)
    assert body["encoding_format"] == "array"
    assert reply.data.count(b"\xca") >= 8


async def test_header_names_are_read_in_any_case_and_nothing_else_is_echoed(nc):
    headers = {"aCCept": "application/msgpack", "ML-REQUEST-ID": "my-id", "Authorization": "secret"}
    reply = await nc.request(names.EMBED, b"x", timeout=20, headers=headers)
    assert reply.headers == {"Content-Type": "application/msgpack", "Ml-Request-Id": "my-id"}


async def test_options_reach_the_model(ml):
    plain = await ml.embed("some words here", normalize=False)
    np.testing.assert_allclose(plain.embedding, vector_of([word_id(w) for w in ["some", "words", "here"]]), atol=1e-5)
    assert len((await ml.embed("x", dimensions=3)).embedding) == 3
    np.testing.assert_allclose((await ml.embed("x", prompt_name="query")).embedding, expected("query: x"), atol=1e-6)
    long = " ".join(f"w{i}" for i in range(MAX_TOKENS + 9))
    cut = await ml.embed(long, truncate="start")
    assert cut.truncated
    assert cut.usage.tokens == MAX_TOKENS
    np.testing.assert_allclose(cut.embedding, expected(" ".join(long.split()[-MAX_TOKENS:])), atol=1e-6)
    with pytest.raises(TooLarge, match=str(MAX_TOKENS)):
        await ml.embed(long, truncate="error")


async def test_a_batch_in_one_reply(nc):
    texts = [f"text number {i}" for i in range(300)]
    reply = await ask(nc, json.dumps({"texts": texts, "encoding_format": "base64"}).encode(), names.EMBED_BATCH)
    vectors = codec.loads(reply.data, names.JSON)["embeddings"]
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(np.frombuffer(base64.b64decode(vector), "<f4"), expected(text), atol=1e-6)


async def test_a_streamed_batch_ends_with_done_and_the_sentinel(nc):
    texts = [f"text {i}" for i in range(700)]
    inbox = nc.new_inbox()
    frames = await nc.subscribe(inbox)
    body = msgpack.packb({"texts": texts})
    await nc.publish(names.EMBED_BATCH, body, reply=inbox, headers={names.STREAM: "true"})
    seen = []
    while (message := await frames.next_msg(timeout=20)).data:
        assert int(message.headers[names.SEQ]) == len(seen)
        seen.append((message.headers[names.EVENT], msgpack.unpackb(message.data)))
    assert message.headers is None
    assert [event for event, _ in seen] == ["chunk", "chunk", "chunk", "done"]
    vectors = [np.frombuffer(row, "<f4") for _, body in seen[:-1] for row in body["embeddings"]]
    np.testing.assert_allclose(vectors, [expected(text) for text in texts], atol=1e-6)
    assert seen[-1][1]["count"] == 700


async def test_the_client_streams_and_collects(ml):
    texts = [f"text {i}" for i in range(600)] + [" ".join(f"w{i}" for i in range(MAX_TOKENS + 1))]
    batch = await ml.embed_batch(texts)
    np.testing.assert_allclose(batch.embeddings[:600], [expected(text) for text in texts[:600]], atol=1e-6)
    assert batch.truncated == [600]
    assert batch.usage.tokens == 2 * 600 + MAX_TOKENS
    last = [frame async for frame in ml.embed_stream(texts)][-1]
    assert isinstance(last, EmbedDone)


@pytest.mark.parametrize("encoding", get_args(EncodingFormat))
async def test_each_encoding_comes_as_its_dtype_and_says_so(ml, encoding):
    texts = [f"text {i}" for i in range(300)]
    (dtype, tolerance) = {"float16": ("float16", 1e-3), "int8": ("int8", 0.008), "binary": ("uint8", 1)}.get(
        encoding, ("float32", 1e-6)
    )
    one = await ml.embed(texts[0], encoding_format=encoding)
    batch = await ml.embed_batch(texts, encoding_format=encoding)
    chunks = [chunk async for chunk in ml.embed_stream(texts, encoding_format=encoding)][:-1]
    streamed = [vector for chunk in chunks for vector in chunk.embeddings]
    for reply in (one, batch, *chunks):
        assert (reply.encoding_format, reply.dimensions) == (encoding, 8)
    for vectors in ([one.embedding], batch.embeddings, streamed):
        assert {vector.dtype.name for vector in vectors} == {dtype}
        for text, vector in zip(texts, vectors, strict=False):
            back = to_float32(vector, encoding, 8)
            np.testing.assert_allclose(back, expected(text), atol=tolerance)
            np.testing.assert_array_equal(back > 0, np.where(np.abs(back) > 0, expected(text) > 0, False))


async def test_what_a_model_lacks_is_named_with_what_it_has(nats_url):
    encoder = FakeEncoder(names=PromptsAndTasks(prompts={"query": "query: "}, tasks={"clustering": 0, "retrieval": 1}))
    encoder.matryoshka = (2, 4)
    async with running_worker(nats_url, encoder), await MLClient.connect(nats_url) as ml:
        for lacking, had in (
            ({"task": "nope"}, "clustering, retrieval"),
            ({"prompt_name": "nope"}, "query"),
            ({"dimensions": 3}, "2, 4"),
        ):
            asked = [
                ml.embed("a", **lacking),
                ml.embed_batch(["a"], **lacking),
                ml.similarity("a", "b", **lacking),
                ml.rank("a", ["b"], **lacking),
            ]
            for error in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(error, InvalidField)
                assert had in str(error)
        assert (await ml.embed("a", task="retrieval", dimensions=4)).dimensions == 4
        assert (await ml.similarity("a", "a", task="clustering")).score == pytest.approx(1, abs=1e-6)


async def test_a_request_that_does_not_say_is_normalised_as_the_models_entry_says(nats_url):
    encoder = FakeEncoder()
    encoder.normalizes = False
    raw = vector_of([word_id("word")])
    async with running_worker(nats_url, encoder), await MLClient.connect(nats_url) as ml:
        np.testing.assert_allclose((await ml.embed("word")).embedding, raw, atol=1e-5)
        np.testing.assert_allclose((await ml.embed("word", normalize=True)).embedding, expected("word"), atol=1e-6)
        assert (await ml.similarity("word", "word")).score == pytest.approx(1, abs=1e-6)
        for encoding in ("int8", "binary"):
            with pytest.raises(InvalidField, match="normalize: true"):
                await ml.embed_batch(["word"], encoding_format=encoding)


async def answers_to(nc, body: bytes, subject: str = names.EMBED_BATCH, **headers: str) -> list:
    """All messages up to the sentinel."""
    return await all_of(await sent(nc, body, subject, **headers))


async def sent(nc, body: bytes, subject: str, **headers: str):
    """Send a request that allows frames -> the subscription that its answers come to, once the worker is to hear it."""
    asked = {names.STREAM: "auto"} | {name.replace("_", "-"): value for name, value in headers.items()}
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    await nc.publish(subject, body, inbox, asked)
    await nc.flush()
    return answers


async def all_of(answers) -> list:
    messages = []
    while (message := await answers.next_msg(timeout=20)).data:
        messages.append(message)
    assert message.headers is None
    return messages


def batch(texts: list[str]) -> bytes:
    return json.dumps({"texts": texts}).encode()


async def test_auto_streams_only_what_may_not_fit(nc, encoder):
    (one,) = await answers_to(nc, batch(["a", "b"]))
    assert len(codec.loads(one.data, names.JSON)["embeddings"]) == 2
    *frames, last = await answers_to(nc, batch([f"t{i}" for i in range(10_000)]), Ml_Stream="AUTO")
    assert {frame.headers[names.EVENT] for frame in frames} == {"chunk"}
    assert last.headers[names.EVENT] == "done"
    assert codec.loads(last.data, names.JSON)["count"] == 10_000


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b'{"texts": ["a"]}', {}, None),
        (b"{", {}, 400),
        (b'{"texts": ["\\u0000"]}', {}, 422),
        (b'{"texts": ["poison"]}', {}, 500),
        (b'{"texts": ["a"]}', {"Accept": "text/html"}, 406),
        (b'{"texts": ["a"]}', {"Ml_Timeout_Ms": "0"}, 408),
        (b'{"texts": ["a"]}', {f"X-{i}": "y" * 100 for i in range(300)}, 413),
    ],
)
async def test_whoever_allows_frames_gets_the_sentinel_after_one_reply_too(nc, body, headers, code):
    (one,) = await answers_to(nc, body, **headers)
    assert names.EVENT not in one.headers
    assert (error_of(one)["code"] if code else one.headers.get(names.ERROR_CODE)) == code


async def test_the_sentinel_follows_an_end_that_comes_from_outside(nats_url, encoder):
    async with AsyncExitStack() as stack, await nats.connect(nats_url) as nc:
        await stack.enter_async_context(running_worker(nats_url, encoder, grace_s=0.1))
        encoder.gate.clear()
        (late,) = await answers_to(nc, b"late", names.EMBED, Ml_Timeout_Ms="50")
        assert error_of(late)["code"] == 408
        answers = await sent(nc, b"cancelled", names.EMBED, Ml_Request_Id="id-7")
        await nc.publish(names.cancel_subject("id-7"))
        assert error_of((await all_of(answers))[0])["code"] == 499
        answers = await sent(nc, b"left", names.EMBED)
        await nc.request(f"$SRV.PING.{names.SERVICE}", timeout=20)  # the worker has the request before it
        draining = asyncio.create_task(stack.aclose())
        assert error_of((await all_of(answers))[0])["code"] == 503
        encoder.gate.set()
        await draining


async def test_a_full_worker_closes_its_refusal_too(nats_url):
    async with running_worker(nats_url, limits={"request_bytes": 2000}), await nats.connect(nats_url) as nc:
        (refused,) = await answers_to(nc, b"x" * 5000, names.EMBED)
        assert error_of(refused)["code"] == 413


async def test_nothing_follows_the_reply_to_a_plain_request(nc, ml):
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    for headers in (None, {names.STREAM: "false"}, {names.STREAM: "maybe"}):
        await nc.publish(names.EMBED, b"x", inbox, headers)
        assert (await answers.next_msg(timeout=20)).data
    await ml.embed("a later request")
    await nc.flush()
    assert answers.pending_msgs == 0


async def test_a_reply_that_may_not_fit_is_refused_before_any_work(nc, encoder):
    refused = await ask(nc, batch([f"t{i}" for i in range(10_000)]), names.EMBED_BATCH)
    error = error_of(refused)
    assert error["code"] == 413
    for way_out in ("Ml-Stream: true", "Ml-Stream: auto", names.MSGPACK, "at most"):
        assert way_out in error["message"]
    assert not encoder.seen


async def test_no_sentinel_follows_where_every_worker_answers(nc):
    """It would end the hearing of whoever waits for all of them."""
    answers = await sent(nc, b"minilm", names.MODELS_LOAD)
    assert (await answers.next_msg(timeout=20)).data
    await nc.publish(names.EMBED, b"a", answers.subject)
    assert (await answers.next_msg(timeout=20)).data


async def test_auto_on_a_subject_without_streams_is_one_reply(nc):
    reply = await ask(nc, b"a", Ml_Stream="auto")
    assert names.EVENT not in reply.headers
    assert len(json.loads(reply.data)["embedding"]) == 8


async def test_any_number_of_texts_are_so_many_requests(ml):
    texts = [f"text {i}" for i in range(3000)] + [" ".join(f"w{i}" for i in range(MAX_TOKENS + 1))]
    *chunks, done = [frame async for frame in ml.embed_all(iter(texts))]
    assert [chunk.index for chunk in chunks] == np.cumsum([0, *(len(c.embeddings) for c in chunks[:-1])]).tolist()
    vectors = [vector for chunk in chunks for vector in chunk.embeddings]
    np.testing.assert_allclose(vectors[:3000], [expected(text) for text in texts[:3000]], atol=1e-6)
    assert [index for chunk in chunks for index in chunk.truncated] == [3000]
    assert isinstance(done, EmbedDone)
    assert (done.count, done.usage.tokens) == (3001, 6000 + MAX_TOKENS)


async def test_a_request_that_breaks_off_goes_on_at_another_worker_and_nothing_comes_twice(nats_url):
    texts = [f"text {i}" for i in range(1500)]
    leaving, staying = FakeEncoder(), FakeEncoder()
    async with AsyncExitStack() as first, await MLClient.connect(nats_url) as ml:
        await first.enter_async_context(running_worker(nats_url, leaving, grace_s=0))
        stream = ml.embed_all(texts)
        frames = [await anext(stream)]
        leaving.gate.clear()
        async with running_worker(nats_url, staying):
            closing = asyncio.create_task(first.aclose())
            frames += [frame async for frame in stream]
            leaving.gate.set()
            await closing
    chunks = [frame for frame in frames if isinstance(frame, EmbedChunk)]
    vectors = [vector for chunk in chunks for vector in chunk.embeddings]
    assert [chunk.index for chunk in chunks] == np.cumsum([0, *(len(c.embeddings) for c in chunks[:-1])]).tolist()
    np.testing.assert_allclose(vectors, [expected(text) for text in texts], atol=1e-6)
    assert staying.seen


class Swapped(FakeEncoder):
    """Another version from its eighth batch on."""

    @property
    def version(self) -> str:
        return "old-fp32" if len(self.batches) < 8 else "new-fp32"


async def test_vectors_of_two_versions_are_not_mixed(nats_url):
    async with running_worker(nats_url, Swapped()), await MLClient.connect(nats_url) as ml:
        with pytest.raises(VersionChanged, match=r"old-fp32 to new-fp32.*start again"):
            [frame async for frame in ml.embed_all(f"text {i}" for i in range(20_000))]


async def test_a_fault_in_a_later_request_is_placed(ml):
    texts = [*(f"text {i}" for i in range(1024)), "fine", "\0"]
    with pytest.raises(InvalidField, match=r"texts\.1.*counted from text 1024"):
        [frame async for frame in ml.embed_all(texts)]


async def test_similarity_and_ranking(ml):
    assert (await ml.similarity("a b c", "a b c")).score == pytest.approx(1, abs=1e-6)
    pair = await ml.similarity("a b", "c d")
    assert pair.score == pytest.approx(float(expected("a b") @ expected("c d")), abs=1e-6)
    candidates = [f"c{i} d" for i in range(20)]
    ranking = await ml.rank("a b", candidates, top_k=5)
    scores = [float(expected("a b") @ expected(text)) for text in candidates]
    assert [item.index for item in ranking.results] == sorted(range(20), key=lambda i: -scores[i])[:5]


BAD = {
    "garbage": (b"\xff\x00\xfe\x01", {}, 400),
    "truncated MessagePack": (b"\x82\xa4text\xa3ab", {}, 400),
    "a struct as an array": (msgpack.packb(["a"]), {}, 422),
    "truncated JSON": (b'{"text": "a', {}, 400),
    "lone surrogate": (b'{"text": "\\udc00"}', {}, 422),
    "lone surrogate in MessagePack": (b"\x81\xa4text\xa3\xed\xa0\x80", {}, 422),
    "white space before what is no JSON": (b"\n {a", {}, 400),
    "wrong type": (b'{"text": ["a"]}', {}, 422),
    "unknown field": (b'{"text": "a", "lang": "en"}', {}, 422),
    "empty": (b"", {}, 422),
    "blank": (b" \n ", {}, 422),
    "NUL": (b"a\x00b", {}, 422),
    "dimensions 0": (b'{"text": "a", "dimensions": 0}', {}, 422),
    "dimensions above": (b'{"text": "a", "dimensions": 9}', {}, 422),
    "unknown prompt": (b'{"text": "a", "prompt_name": "nope"}', {}, 422),
    "unknown model": (b'{"text": "a", "model": "gpt"}', {}, 404),
    "model not served": (b'{"text": "a", "model": "qodo"}', {}, 503),
    "content type": (b"a", {"Content_Type": "image/png"}, 415),
    "accept": (b"a", {"Accept": "text/html"}, 406),
    "deadline passed": (b"a", {"Ml_Timeout_Ms": "0"}, 408),
    "deadline no number": (b"a", {"Ml_Timeout_Ms": "soon"}, 400),
    "stream flag": (b"a", {"Ml_Stream": "maybe"}, 400),
    "unknown task": (b'{"text": "a", "task": "nope"}', {}, 422),
    "the old name of an encoding": (b'{"text": "a", "encoding_format": "float"}', {}, 422),
    "no unit length": (b'{"text": "a", "encoding_format": "int8", "normalize": false}', {}, 422),
    "no such priority": (b'{"text": "a", "priority": "urgent"}', {}, 422),
    "request id": (b"a", {"Ml_Request_Id": "a.b *"}, 422),
    "header flood": (b"a", {f"X-{i}": "y" * 100 for i in range(300)}, 413),
    "a million characters": (b"a" * 1_000_001, {}, 413),
}


@pytest.mark.parametrize("name", BAD)
async def test_bad_input_gets_its_code_and_harms_nobody(nc, encoder, name):
    body, headers, code = BAD[name]
    encoder.gate.clear()
    good = asyncio.create_task(ask(nc, b"good"))
    error = error_of(await ask(nc, body, **headers))
    assert error["code"] == code
    assert len(error["message"]) > 10
    assert error["request_id"]
    encoder.gate.set()
    assert names.ERROR_CODE not in (await good).headers


async def test_too_many_texts(nc):
    body = msgpack.packb({"texts": ["x"] * (MAX_TEXTS + 1)})
    error = error_of(await ask(nc, body, names.EMBED_BATCH))
    assert error["code"] == 413
    assert str(MAX_TEXTS) in error["message"]


@pytest.mark.parametrize(
    ("subject", "fields"),
    [(names.EMBED_BATCH, {"texts": ["x"] * 33}), (names.SIMILARITY, {"query": "x", "candidates": ["x"] * 32})],
)
async def test_a_crowd_is_not_interactive(nc, subject, fields):
    error = error_of(await ask(nc, msgpack.packb({**fields, "priority": "interactive"}), subject))
    assert error["code"] == 422
    assert "up to 32 texts, not 33" in error["message"]


async def test_plain_text_is_no_batch(nc):
    assert error_of(await ask(nc, b"a text", names.EMBED_BATCH))["code"] == 415


@pytest.mark.parametrize(("stream", "chunks"), [(True, True), ("auto", False), (False, False), (None, False)])
async def test_the_body_of_a_batch_may_ask_for_a_stream(nc, stream, chunks):
    inbox = nc.new_inbox()
    replies = await nc.subscribe(inbox)
    await nc.publish(names.EMBED_BATCH, json.dumps({"texts": ["a", "b"], "stream": stream}).encode(), reply=inbox)
    first = await replies.next_msg(timeout=20)
    assert (names.EVENT in first.headers) == chunks
    if chunks:
        assert (await replies.next_msg(timeout=20)).headers[names.EVENT] == "done"
    if stream:
        assert (await replies.next_msg(timeout=20)).data == b""


async def test_a_subject_without_streams_says_so_in_frames(nc):
    inbox = nc.new_inbox()
    frames = await nc.subscribe(inbox)
    await nc.publish(names.EMBED, b"x", reply=inbox, headers={names.STREAM: "true"})
    message = await frames.next_msg(timeout=20)
    assert error_of(message)["code"] == 400
    assert message.headers[names.EVENT] == "error"
    assert (await frames.next_msg(timeout=20)).data == b""


async def test_a_request_without_a_reply_subject_costs_nothing(nc, ml, encoder):
    await nc.publish(names.EMBED, b"to nobody")
    await ml.embed("to somebody")
    assert word_id("nobody") not in encoder.seen
    (stats,) = await ml.discover("STATS")
    assert stats["endpoints"][0]["num_errors"] == 1


async def test_a_model_that_fails_tells_nothing_of_its_inside(nc, ml):
    error = error_of(await ask(nc, b"poison here"))
    assert error["code"] == 500
    assert "poison" not in error["message"]
    assert (await ml.embed("fine")).usage.tokens == 1


async def test_a_client_raises_the_errors_of_the_wire(ml):
    with pytest.raises(NotFound, match="minilm"):
        await ml.embed("x", model="nope")
    with pytest.raises(NotServed, match="qodo"):
        await ml.embed("x", model="qodo")
    with pytest.raises(InvalidField, match="blank"):
        await ml.embed(" ")


async def test_no_worker_is_said_at_once(nats_url):
    async with await MLClient.connect(nats_url) as ml:
        ml._transport.retries = 1
        with pytest.raises(Unavailable, match="no worker"):
            await ml.embed("x")
        with pytest.raises(Unavailable, match="no worker"):
            await ml.embed_batch(["x"])


async def test_a_deadline_stops_the_work(nc, encoder):
    encoder.gate.clear()
    first = asyncio.create_task(ask(nc, b"first"))
    await entered(encoder)
    error = error_of(await ask(nc, b"late", Ml_Timeout_Ms="50"))
    assert error["code"] == 408
    encoder.gate.set()
    await first
    await ask(nc, b"after")
    assert word_id("late") not in encoder.seen


async def test_a_cancel_stops_the_work(nc, encoder):
    encoder.gate.clear()
    first = asyncio.create_task(ask(nc, b"first"))
    await entered(encoder)
    inbox = nc.new_inbox()
    answers = await nc.subscribe(inbox)
    await nc.publish(names.EMBED, b"doomed", reply=inbox, headers={names.REQUEST_ID: "id-7"})
    await nc.publish(names.cancel_subject("id-7"))
    assert error_of(await answers.next_msg(timeout=20))["code"] == 499
    encoder.gate.set()
    await first
    await ask(nc, b"after")
    assert word_id("doomed") not in encoder.seen


async def test_a_client_that_gives_up_cancels(ml, encoder):
    encoder.gate.clear()
    first = asyncio.create_task(ml.embed("first"))
    await entered(encoder)
    given_up = asyncio.create_task(ml.embed("doomed"))
    await ml._nc.flush()
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    with pytest.raises(DeadlinePassed):
        await ml.embed("late", timeout_s=0.05)
    await ml._nc.flush()
    encoder.gate.set()
    await first
    await ml.embed("after")
    assert not {word_id("doomed"), word_id("late")} & encoder.seen


async def test_a_stream_nobody_listens_to_stops(nc, encoder):
    inbox = nc.new_inbox()
    frames = await nc.subscribe(inbox)
    texts = [f"t{i}" for i in range(8000)]
    await nc.publish(names.EMBED_BATCH, msgpack.packb({"texts": texts}), reply=inbox, headers={names.STREAM: "true"})
    await frames.next_msg(timeout=20)
    encoder.gate.clear()
    await frames.unsubscribe()
    await nc.flush()
    encoder.gate.set()
    await _idle(nc)
    assert len(encoder.seen) < 8000


async def test_a_stream_closed_early_is_cancelled(ml, encoder):
    stream = ml.embed_stream([f"t{i}" for i in range(8000)])
    await anext(stream)
    await stream.aclose()
    await _idle(ml._nc)
    assert len(encoder.seen) < 8000


async def _idle(nc) -> None:
    """Return when the worker has nothing in flight."""
    ml = MLClient(nc)
    async with asyncio.timeout(20):
        while (await ml.discover("STATS", wait_s=0.1))[0]["endpoints"][0]["data"]["in_flight"]:
            pass


async def test_two_requests_of_one_id_are_both_cancelled(nc, encoder):
    encoder.gate.clear()
    both = [asyncio.create_task(ask(nc, b"x", Ml_Request_Id="same")) for _ in range(2)]
    await entered(encoder)
    await nc.publish(names.cancel_subject("same"))
    assert [error_of(message)["code"] for message in await asyncio.gather(*both)] == [499, 499]
    encoder.gate.set()


@pytest.mark.parametrize("reply", ["$JS.API.STREAM.DELETE.ML_JOBS", "$KV.ml_jobs.x", "ml.similarity", "ml.cancel.x"])
async def test_a_request_cannot_make_the_worker_speak_where_its_sender_may_not(nc, ml, encoder, reply):
    heard = await nc.subscribe(reply)
    await nc.publish(names.EMBED, b"do my bidding", reply=reply)
    await ml.embed("something else")
    await nc.flush()
    assert heard.pending_msgs == 0
    assert word_id("bidding") not in encoder.seen


async def test_a_request_past_the_payload_limit_is_refused_here_and_the_connection_lives(ml):
    texts = ["x" * 600_000 for _ in range(3)]
    with pytest.raises(TooLarge, match="a message holds"):
        await ml.embed_batch(texts)
    assert (await ml.embed("still here")).usage.tokens == 2


async def test_a_request_larger_than_a_worker_takes_is_not_told_to_come_again(nats_url):
    async with running_worker(nats_url, limits={"request_bytes": 2000}), await MLClient.connect(nats_url) as ml:
        with pytest.raises(TooLarge, match="2000"):
            await ml.embed("x" * 5000)


async def test_a_closed_connection_is_an_error_of_the_clients_own(nats_url):
    ml = await MLClient.connect(nats_url)
    ml._transport.retries = 0
    await ml._nc.close()
    with pytest.raises(Unavailable, match="connection"):
        await ml.embed("x")
    with pytest.raises(Unavailable, match="connection"):
        await ml.embed_batch(["x"])


async def test_a_cancellation_that_comes_with_the_answer_is_not_lost(ml, monkeypatch):
    publish = ml._nc.publish

    async def cancelled_meanwhile(*arguments, **options):
        await publish(*arguments, **options)
        asyncio.current_task().cancel()
        with suppress(asyncio.CancelledError):  # as nats-py has it where it flushes
            await asyncio.sleep(0)

    monkeypatch.setattr(ml._nc, "publish", cancelled_meanwhile)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(ml.embed("text"))


async def test_no_time_is_no_time(ml):
    with pytest.raises(DeadlinePassed):
        await ml.embed("x", timeout_s=0)
