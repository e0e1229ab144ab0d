"""What comes in wrong, by mistake or meaning harm: a clear error in the API's form, and the next request works."""

import asyncio
import json
import random

import pytest
import pytest_asyncio
from gateways import Gateway, ask, connection, post, request, running_gateway

from service.gateway.openapi import OPENAI
from subjects import names
from subjects.routes import ROUTES

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = b'{"text":"a"}'


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def the_next_request_works(setup):
    yield
    assert (await post(setup.gateway, "/ml/embed", {"text": "next"})).status == 200


class TestCallers:
    @pytest.mark.parametrize(
        "host", ["localhost", "localhost:8080", "127.0.0.1:1", "[::1]:8080", "192.168.1.7", "LOCALHOST"]
    )
    async def test_names_that_nobody_else_can_give_it(self, gateway: Gateway, host: str) -> None:
        assert (await post(gateway, "/ml/embed", TEXT, host=host)).status == 200

    @pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[::1", "@"])
    async def test_a_foreign_name_is_refused(self, gateway: Gateway, host: str) -> None:
        for path in ("/ml/embed", "/v1/embeddings", "/healthz", "/nope"):
            answer = await post(gateway, path, TEXT, host=host)
            assert answer.status == 403
            assert "http.hosts" in answer.error["message"]

    async def test_a_name_is_needed_except_in_http_1_0(self, gateway: Gateway) -> None:
        assert (await post(gateway, "/ml/embed", TEXT, host="")).status == 400
        old = request("POST", "/ml/embed", TEXT, host="").replace(b"HTTP/1.1", b"HTTP/1.0")
        async with connection(gateway) as caller:
            await caller.send(old)
            answer = await caller.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")

    @pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1"])
    async def test_pages_of_elsewhere_are_refused(self, gateway: Gateway, origin: str) -> None:
        answer = await post(gateway, "/v1/embeddings", {"input": "a"}, origin=origin)
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers
        assert (await ask(gateway, "OPTIONS", "/ml/embed", origin=origin)).status == 403

    async def test_its_own_pages_may_call(self, gateway: Gateway) -> None:
        host = gateway.url.removeprefix("http://")
        assert (await post(gateway, "/ml/embed", TEXT, host=host, origin=gateway.url)).status == 200

    async def test_named_pages_and_names_may(self, setup) -> None:
        page = "https://app.example"
        allowed = {"MLBUS_HTTP__ORIGINS": f"{page}, https://other.example", "MLBUS_HTTP__HOSTS": "ml.example"}
        async with running_gateway(setup.server.url, **allowed) as gateway:
            answer = await post(gateway, "/ml/embed", TEXT, host="ml.example", origin=page)
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, page)
            asked = {"origin": page, "access_control_request_method": "POST"}
            told = await ask(gateway, "OPTIONS", "/ml/embed", **asked)
            assert (told.status, told.headers["access-control-allow-methods"]) == (204, "GET, POST")
            assert "Ml-Timeout-Ms" in told.headers["access-control-allow-headers"]
            failed = await post(gateway, "/ml/embed", {"nope": 1}, origin=page)
            assert failed.headers["access-control-allow-origin"] == page

    @pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
    async def test_bodies_that_a_page_can_send_unasked_are_refused(self, gateway: Gateway, kind: str) -> None:
        for path in ("/ml/embed", "/v1/embeddings"):
            assert (await post(gateway, path, TEXT, content_type=kind)).status == 415


class TestBodies:
    @pytest.mark.parametrize("body", [b"", b"{", b'{"text":', b'{"text":"\xff\xfe"}', b"[" * 9999, b"null", b'"a"'])
    async def test_what_is_no_request(self, gateway: Gateway, body: bytes) -> None:
        answer = await post(gateway, "/ml/embed", body)
        assert answer.status in (400, 422)
        assert answer.error["code"] == answer.status

    async def test_numbers_that_are_absurd(self, gateway: Gateway) -> None:
        for value in ("1e999", "-1", "9" * 400, "NaN", "true", '"7"', "[]"):
            body = b'{"text":"a","dimensions":%s}' % value.encode()
            assert (await post(gateway, "/ml/embed", body)).status in (400, 422)

    async def test_a_body_of_100_megabytes_is_refused_unread_or_read(self, gateway: Gateway) -> None:
        """A client that asks first is told at once; one that sends all before it reads is told then."""
        size = str(100 * 2**20)
        async with connection(gateway) as caller:
            await caller.send(request("POST", "/ml/embed", content_length=size, expect="100-continue"))
            answer = await caller.answer()
            assert (answer.status, answer.headers["connection"]) == (413, "close")
            assert await caller.closed()
        async with connection(gateway) as caller:
            await caller.send(request("POST", "/v1/embeddings", content_length=size))
            for _ in range(100):
                await caller.send(bytes(2**20))
            answer = await caller.answer()
        assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")

    async def test_chunks_past_the_bound(self, gateway: Gateway) -> None:
        chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
        async with connection(gateway) as caller:
            await caller.send(request("POST", "/ml/embed", content_length="", transfer_encoding="chunked"))
            for _ in range(9):
                await caller.send(chunk)
            await caller.send(b"0\r\n\r\n")
            assert (await caller.answer()).status == 413

    async def test_what_never_ends_is_ended(self, setup) -> None:
        """Headers and bodies that stop coming, and a caller who says nothing at all."""
        head = request("POST", "/ml/embed", content_length="10")
        async with (
            running_gateway(setup.server.url, MLBUS_HTTP__READ_TIMEOUT_S="0.5") as gateway,
            connection(gateway) as silent,
            connection(gateway) as in_head,
            connection(gateway) as in_body,
            connection(gateway) as in_second,
        ):
            await in_second.send(request("POST", "/ml/embed", TEXT))
            assert (await in_second.answer()).status == 200
            await in_head.send(head[:20])
            await in_second.send(head[:20])
            await in_body.send(head + b"{")
            for caller in (silent, in_head, in_second, in_body):
                answer = await caller.answer()
                assert (answer.status, answer.error["code"]) == (408, 408)
                assert await caller.closed()


class TestHeads:
    async def test_headers_past_the_bound(self, gateway: Gateway) -> None:
        for fields in ({"x": "y" * 40_000}, {f"x{number}": "y" * 100 for number in range(500)}):
            assert (await post(gateway, "/ml/embed", TEXT, **fields)).status == 431
        async with connection(gateway) as caller:
            await caller.send(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000)
            assert (await caller.answer()).status == 431

    @pytest.mark.parametrize(
        "head",
        [
            b"GARBAGE\r\n\r\n",
            b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"POST /ml/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
            b"POST /ml/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            b"POST /ml/embed HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
        ],
    )
    async def test_what_is_no_http(self, gateway: Gateway, head: bytes) -> None:
        async with connection(gateway) as caller:
            await caller.send(head)
            answer = await caller.answer()
            assert (answer.status, answer.error["code"]) == (400, 400)
            assert await caller.closed()

    async def test_an_upgrade_to_a_websocket_is_no_reason_to_hang_up(self, gateway: Gateway) -> None:
        asked = {
            "connection": "Upgrade",
            "upgrade": "websocket",
            "sec_websocket_key": "x",
            "sec_websocket_version": "13",
        }
        for path, status in (("/healthz", 200), ("/ml/embed", 405)):
            assert (await ask(gateway, "GET", path, **asked)).status == status

    @pytest.mark.parametrize(
        "path", ["/ml/../etc/passwd", "/ml/%2e%2e/x", "/ml//embed", "/ml/embed/", "/ML/embed", "/"]
    )
    async def test_paths_that_are_none(self, gateway: Gateway, path: str) -> None:
        assert (await post(gateway, path, TEXT)).status == 404

    async def test_methods_that_are_none(self, gateway: Gateway) -> None:
        for method in ("GET", "PUT", "DELETE", "TRACE", "OPTIONS", "HEAD"):
            async with connection(gateway) as caller:
                await caller.send(request(method, "/ml/embed"))
                assert (await caller.head())[0] == 405

    async def test_headers_of_the_contract_that_are_wrong(self, gateway: Gateway) -> None:
        for name, value in (
            ("ml_request_id", "a b"),
            ("ml_timeout_ms", "-5"),
            ("ml_stream", "perhaps"),
            ("accept", "a/b"),
        ):
            answer = await post(gateway, "/ml/generate", {"prompt": "a"}, **{name: value})
            assert 400 <= answer.status < 500, name


class TestTooMuch:
    async def test_requests_past_the_bound_are_told_to_wait(self, setup) -> None:
        setup.chat.gate.clear()
        try:
            async with (
                running_gateway(setup.server.url, MLBUS_HTTP__REQUESTS="1") as gateway,
                connection(gateway) as caller,
            ):
                setup.chat.entered.clear()
                body = json.dumps({"prompt": "a", "model": "smollm2", "max_tokens": 1}).encode()
                await caller.send(request("POST", "/ml/generate", body))
                assert await asyncio.to_thread(setup.chat.entered.wait, 10)
                answer = await post(gateway, "/v1/embeddings", {"input": "a"})
                assert (answer.status, answer.headers["retry-after"]) == (429, "1")
                assert answer.error["type"] == "rate_limit_error"
                setup.chat.gate.set()
                assert (await caller.answer()).status == 200
        finally:
            setup.chat.gate.set()

    async def test_connections_past_the_bound_are_closed(self, setup) -> None:
        async with running_gateway(setup.server.url, MLBUS_HTTP__CONNECTIONS="2") as gateway:
            async with connection(gateway) as one, connection(gateway) as other:
                for caller in (one, other):
                    await caller.send(request("GET", "/healthz"))
                    assert (await caller.answer()).status == 200
                async with connection(gateway) as third:
                    assert await third.closed()
            assert (await ask(gateway, "GET", "/healthz")).status == 200


async def test_no_fields_whatever_are_an_internal_error(gateway: Gateway) -> None:
    """A seeded choice of values of wrong kinds for every field of every subject, and of OpenAI's paths."""
    rng = random.Random(7)
    values = [None, True, -1, 0, 2**63, 1.5, "", "a", "\0", "x" * 300, [], [1], ["a"], {}, {"a": 1}, [[["a"]]]]
    asked = [
        (f"/{subject.replace('.', '/')}", route.request) for subject, route in ROUTES.items() if route.role == "client"
    ]
    asked += [(path, request) for path, (_, request) in OPENAI.items()]
    async with connection(gateway) as caller:
        for path, message in asked:
            for _ in range(12):
                chosen = rng.sample(list(message.model_fields), min(3, len(message.model_fields)))
                body = json.dumps({name: rng.choice(values) for name in chosen}).encode()
                await caller.send(request("POST", path, body, ml_timeout_ms="3000"))
                answer = await caller.answer()
                assert answer.status < 500 or answer.status == 503, (path, body, answer.body)
                assert answer.headers["content-type"] in (names.JSON, "text/event-stream; charset=utf-8")
