"""`POST /ml/…`: the wire contract over HTTP, held against the same over NATS."""

import json

import msgpack
import numpy as np
import pytest
from gateways import Gateway, ask, connection, post, request

from service.gateway.native import paths
from subjects import names
from subjects.routes import ROUTES

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_vector_is_the_same_as_over_nats(setup, gateway: Gateway) -> None:
    over_nats = await setup.ml.embed("def add(a, b)")
    in_json = await post(gateway, "/ml/embed", {"text": "def add(a, b)"})
    assert (in_json.status, in_json.headers["content-type"]) == (200, "application/json")
    assert np.array_equal(np.array(in_json.json["embedding"], np.float32), over_nats.embedding)
    body = msgpack.packb({"text": "def add(a, b)"})
    packed = await post(gateway, "/ml/embed", body, content_type=names.MSGPACK)
    assert packed.headers["content-type"] == names.MSGPACK
    assert msgpack.unpackb(packed.body)["embedding"] == over_nats.embedding.tobytes()


async def test_a_reply_follows_accept_and_carries_the_request_id(gateway: Gateway) -> None:
    answer = await post(gateway, "/ml/embed", {"text": "a"}, accept=names.MSGPACK, ml_request_id="mine-1")
    assert msgpack.unpackb(answer.body)["model"] == "minilm"
    assert answer.headers["ml-request-id"] == "mine-1"
    told = await post(gateway, "/ml/generate", {"prompt": "a", "max_tokens": 2}, accept=names.TEXT)
    assert told.body == b" 0 1"
    assert json.loads(told.headers["ml-result"])["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "headers"),
    [({}, {"ml_stream": "true"}), ({"stream": True}, {}), ({}, {"accept": "text/event-stream"})],
    ids=["header", "body", "accept"],
)
async def test_a_stream_is_its_frames_as_events(gateway: Gateway, fields, headers) -> None:
    answer = await post(gateway, "/ml/generate", {"prompt": "a b", "max_tokens": 3, **fields}, **headers)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.events
    assert [number for _, number, _ in events] == [str(place) for place in range(len(events))]
    assert "".join(data["text"] for name, _, data in events if name == "token") == " 0 1 2"
    assert events[-1][0] == "done"
    assert events[-1][2]["finish_reason"] == "length"


async def test_vectors_come_as_a_stream_too(setup, gateway: Gateway) -> None:
    texts = [f"text {number}" for number in range(600)]
    answer = await post(gateway, "/ml/embed/batch", {"texts": texts}, ml_stream="true")
    vectors = [vector for name, _, data in answer.events if name == "chunk" for vector in data["embeddings"]]
    over_nats = await setup.ml.embed_batch(texts)
    assert np.array_equal(np.array(vectors, np.float32), np.array(over_nats.embeddings))


async def test_auto_is_one_reply_where_it_fits(gateway: Gateway) -> None:
    answer = await post(gateway, "/ml/embed/batch", {"texts": ["a", "b"]}, ml_stream="auto")
    assert len(answer.json["embeddings"]) == 2


async def test_the_word_stream_in_a_text_asks_for_none(gateway: Gateway) -> None:
    answer = await post(gateway, "/ml/generate", {"prompt": "stream", "max_tokens": 1})
    assert answer.json["text"] == " 0"


async def test_every_subject_has_its_path(gateway: Gateway) -> None:
    assert {route.subject for _, route in paths()} == set(ROUTES)
    for path, route in paths():
        answer = await post(gateway, path.replace("{worker}", "nobody"), {"no_such_field": 1})
        expected = 403 if route.role == "admin" else 503 if path.endswith("}") else 422
        assert answer.status == expected, path
        assert answer.error["code"] == expected
        assert answer.headers["nats-service-error-code"] == str(expected)


async def test_one_worker_can_be_asked(setup, gateway: Gateway) -> None:
    worker = (await post(gateway, "/ml/models/list", {})).json["worker"]
    assert (await post(gateway, f"/ml/models/list/{worker}", {})).json["worker"] == worker
    assert (await post(gateway, "/ml/models/list/%2A", {})).status == 422


async def test_errors_are_those_of_the_contract(gateway: Gateway) -> None:
    unknown = await post(gateway, "/ml/embed", {"text": "a", "model": "nope"}, ml_request_id="mine-2")
    assert unknown.status == 404
    assert unknown.error == {
        "code": 404,
        "message": unknown.error["message"],
        "retryable": False,
        "retry_after_ms": None,
        "request_id": "mine-2",
    }
    packed = await post(gateway, "/ml/embed", {"text": " "}, accept=names.MSGPACK)
    assert (packed.status, msgpack.unpackb(packed.body)["error"]["code"]) == (422, 422)
    late = await post(gateway, "/ml/embed", {"text": "a"}, ml_timeout_ms="0")
    assert late.status == 408
    assert (await post(gateway, "/ml/embed", {"text": "a"}, ml_timeout_ms="soon")).status == 400
    assert (await post(gateway, "/ml/embed", {"text": "a"}, accept="image/png")).status == 406
    assert (await post(gateway, "/ml/embed", {"text": "a"}, ml_stream="true")).status == 400


async def test_a_stream_is_not_sent_in_messagepack(gateway: Gateway) -> None:
    body = {"prompt": "a", "max_tokens": 1}
    assert (await post(gateway, "/ml/generate", body, ml_stream="true", accept=names.MSGPACK)).status == 406


async def test_a_connection_takes_one_request_after_another(gateway: Gateway) -> None:
    async with connection(gateway) as kept:
        for text in ("a", "", "b"):
            await kept.send(request("POST", "/ml/embed", json.dumps({"text": text}).encode()))
            assert (await kept.answer()).status == (200 if text else 422)


async def test_it_tells_how_it_is(gateway: Gateway) -> None:
    assert (await ask(gateway, "GET", "/healthz")).body == b"ok\n"
    assert (await ask(gateway, "GET", "/readyz")).body == b"ok\n"
    figures = (await ask(gateway, "GET", "/metrics")).body.decode()
    assert 'mlbus_http_answers_total{path="/readyz",status="200"}' in figures
