"""The gateway's process: what it loads, where it listens, how it waits for NATS and how it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from gateways import MLBUS, ask, connection, post, request, running_gateway, started_gateway
from nats_server import NatsServer, plain_server
from workers import clean_environment, running_worker

from service.gateway.listening import listening, url_of
from service.settings import BadSettings
from service.settings.gateway import HttpSettings


def gateway_command(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", MLBUS, "gateway", *options],
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_no_machine_learning_is_imported() -> None:
    script = (
        "import sys, service.cli.gateway, service.gateway.process, service.gateway.beside\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=clean_environment(), capture_output=True, check=True)
    for heavy in ("torch", "transformers", "sentence_transformers", "onnxruntime", "openvino"):
        assert f"'{heavy}'" not in done.stdout.decode()


def test_a_busy_port_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = gateway_command("--listen", address)
    assert done.returncode == 1
    assert f"already listens on {address}: choose another port with --listen" in done.stderr


@pytest.mark.parametrize("listen", ["8080", "localhost:", "localhost:99999", "somewhere.invalid:80", "[::1]"])
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    with pytest.raises(BadSettings, match=r"http\.listen"):
        listening(HttpSettings(listen=listen))


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
def test_an_address_that_others_reach_must_be_meant(listen: str) -> None:
    with pytest.raises(BadSettings, match="--insecure"):
        listening(HttpSettings(listen=listen))
    with listening(HttpSettings(listen=listen, insecure=True)) as open_to_all:
        assert url_of(open_to_all).startswith(("http://127.0.0.1:", "http://[::1]:"))


def test_refused_credentials_end_it(secured_server: NatsServer) -> None:
    url = f"nats://gateway:wrong@{secured_server.address}"
    done = gateway_command("--listen", "127.0.0.1:0", "--nats-url", url)
    assert done.returncode == 1
    assert "refused user 'gateway'" in done.stderr


async def test_it_waits_for_the_server_and_for_a_worker(tmp_path: Path) -> None:
    server = plain_server(tmp_path).start()
    server.stop()
    async with started_gateway(server.url) as gateway:
        await gateway.until("bus.unreachable")
        assert (await ask(gateway, "GET", "/healthz")).status == 200
        assert (await ask(gateway, "GET", "/readyz")).status == 503
        answer = await post(gateway, "/ml/embed", {"text": "a"})
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "no connection to NATS" in answer.error["message"]
        server.start()
        try:
            await gateway.until("bus.connected")
            assert (await ask(gateway, "GET", "/readyz")).body == b"no worker answers\n"
            assert "no worker listens" in (await post(gateway, "/ml/embed", {"text": "a"})).error["message"]
            async with running_worker(server.url):
                assert (await ask(gateway, "GET", "/readyz")).status == 200
                assert (await post(gateway, "/ml/embed", {"text": "a"})).status == 200
        finally:
            server.stop()


async def test_it_is_told_to_end_and_finishes_a_stream(nats_url: str) -> None:
    engine = FakeEngine()
    engine.hold_after(1)
    body = b'{"prompt":"a","max_tokens":3,"stream":true}'
    async with running_worker(nats_url, FakeEncoder(), engine), running_gateway(nats_url) as gateway:
        async with connection(gateway) as reader, connection(gateway) as idle:
            await idle.send(request("GET", "/healthz"))
            await idle.answer()
            await reader.send(request("POST", "/ml/generate", body))
            await reader.head()
            first = await reader.chunk()
            gateway.tell_to_end()
            assert await idle.closed()  # it has stopped
            engine.release()
            rest = b""
            while chunk := await reader.chunk():
                rest += chunk
        assert await gateway.stop() == 0
    assert b'"text":" 0"' in first
    assert b"event: done" in rest


async def test_a_stream_past_the_grace_time_ends_with_an_error(nats_url: str) -> None:
    engine = FakeEngine()
    engine.hold_after(1)
    body = b'{"prompt":"a","max_tokens":3,"stream":true}'
    async with (
        running_worker(nats_url, FakeEncoder(), engine),
        running_gateway(nats_url, MLBUS_GRACE_S="2") as gateway,
        connection(gateway) as reader,
    ):
        await reader.send(request("POST", "/ml/generate", body))
        await reader.head()
        await reader.chunk()
        gateway.tell_to_end()
        last = await reader.chunk()
        assert b'event: error\ndata: {"error":{"code":503' in last
        assert await gateway.stop() == 0
        engine.release()


async def test_a_worker_starts_one_beside_it_and_again_if_it_dies(tmp_path: Path) -> None:
    """`mlbus serve --gateway`, with models that take no time."""
    script = Path(__file__).parents[1] / "support" / "serve_fake_gateway.py"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), str(tmp_path)), env=clean_environment(), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None

    async def until(event: str) -> dict[str, str]:
        async for line in process.stderr:
            if line.startswith(b"{") and json.loads(line)["event"] == event:
                return json.loads(line)
        raise AssertionError(f"it ended before {event}")

    async def embedded(url: str) -> int:
        host, _, port = url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request("POST", "/ml/embed", b'{"text":"a"}', connection="close"))
        status = int((await reader.readline()).split()[1])
        writer.close()
        return status

    async with asyncio.timeout(60):
        url = (await until("worker.ready"))["gateway"]
        child = int((await asyncio.to_thread(_children_of, process.pid))[0])
        assert await embedded(url) == 200
        os.kill(child, signal.SIGKILL)
        await until("gateway.ended")
        await until("bus.connected")
        assert await embedded(url) == 200
        process.terminate()
        assert await process.wait() == 0
    assert not _children_of(process.pid)


def _children_of(pid: int) -> list[str]:
    done = subprocess.run(["pgrep", "-P", str(pid), "-f", "service.gateway"], capture_output=True, text=True)
    return done.stdout.split()
