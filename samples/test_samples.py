"""The samples: all of them print what plain requests give. `make test-clients` builds them first.

They are run against a real worker, against nobody, and against one who breaks off in the middle of a text.
"""

import asyncio
import json
import re
import sys
from asyncio.subprocess import PIPE, Process
from typing import Any

import nats
import numpy as np
import pytest
from fake_encoder import FakeEncoder, vector_of, word_id
from fake_engine import FakeEngine
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats_server import REPOSITORY
from workers import clean_environment, running_worker

from models.encoders.base import finish

SAMPLES = REPOSITORY / "samples"
BUILT = REPOSITORY / "build" / "samples"
TIMEOUT_MS = "30000"


def java(name: str) -> list[str]:
    return ["java", "-cp", f"{SAMPLES}/java/target/classes:{SAMPLES}/java/target/lib/*", name]


CLIENTS: dict[str, list[str]] = {
    "python": [sys.executable, f"{SAMPLES}/python/client.py"],
    "go": [f"{BUILT}/go/client"],
    "node": ["node", f"{SAMPLES}/node/client.mjs"],
    "rust": [f"{SAMPLES}/rust/target/debug/client"],
    "java": java("Client"),
    "c": [f"{BUILT}/c/client"],
    "shell": [f"{SAMPLES}/shell/client.sh"],
}
VECTORS: dict[str, list[str]] = {
    "python": [sys.executable, f"{SAMPLES}/python/vectors.py"],
    "go": [f"{BUILT}/go/vectors"],
    "node": ["node", f"{SAMPLES}/node/vectors.mjs"],
    "rust": [f"{SAMPLES}/rust/target/debug/vectors"],
    "java": java("Vectors"),
    "c": [f"{BUILT}/c/vectors"],
}

EMBED = {"text": "def hello(): pass"}
RANK = {"query": "read a file", "candidates": ["a + b", "open(path).read()", "requests.get(url)"]}
GENERATE = {"prompt": "def fib(n):", "max_tokens": 48, "temperature": 0}
UNKNOWN = {**EMBED, "lang": "python"}


async def started(command: list[str], url: str) -> Process:
    environ = clean_environment(NATS_URL=url)
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, env=environ)


async def printed(command: list[str], url: str) -> str:
    process = await started(command, url)
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def ask(nc: Client, subject: str, body: Any) -> Msg:
    return await nc.request(subject, json.dumps(body).encode(), timeout=60)


@pytest.mark.parametrize("language", CLIENTS)
async def test_a_sample_prints_what_a_plain_request_gives(worker_url: str, language: str) -> None:
    out = await printed(CLIENTS[language], worker_url)
    found = re.fullmatch(r"(.*^stream: )(.*?)(^finish: .*^)cancel: .+?^finish: cancelled$(.*)", out, re.M | re.S)
    assert found, out
    async with await nats.connect(worker_url) as nc:
        embedded = json.loads((await ask(nc, "ml.embed", EMBED)).data)
        ranking = json.loads((await ask(nc, "ml.similarity", RANK)).data)
        text = json.loads((await ask(nc, "ml.generate", GENERATE)).data)
        error = (await ask(nc, "ml.embed", UNKNOWN)).headers
        worker = json.loads((await ask(nc, "$SRV.PING.ml", {})).data)
    first = " ".join(f"{value:.4f}" for value in embedded["embedding"][:3])
    assert found[1].splitlines() == [
        f"embed: minilm, 384 dimensions, {first}",
        *(f"rank: {ranked['index']} {ranked['score']:.2f}" for ranked in ranking["results"]),
        "stream: ",
    ]
    assert found[2] == text["text"] + "\n"
    assert found[3].splitlines() == [
        f"finish: {text['finish_reason']}",
        f"error: 422 {error['Nats-Service-Error']}",
    ]
    assert found[4] == f"\nworkers: 1 {worker['metadata']['models']}\n"


@pytest.mark.parametrize("language", VECTORS)
async def test_a_vector_is_read_from_messagepack(worker_url: str, language: str) -> None:
    out = await printed(VECTORS[language], worker_url)
    async with await nats.connect(worker_url) as nc:
        vector = json.loads((await ask(nc, "ml.embed", EMBED)).data)["embedding"]
    values = f"384 values, {vector[0]:.4f} {vector[1]:.4f} … {vector[-1]:.4f}"
    assert out.splitlines() == [f"float32: {values}", f"array: {values}"]


async def test_the_frames_of_a_batch_and_of_a_text_come_in_order(nats_url: str) -> None:
    async with running_worker(nats_url, FakeEncoder(), FakeEngine()):
        got = json.loads(await printed(["node", f"{SAMPLES}/node/frames.mjs"], nats_url))
    for frames in got.values():
        assert [frame.get("seq") for frame in frames] == [*range(len(frames) - 1), None]
        assert [frame["event"] for frame in frames[-2:]] == ["done", "sentinel"]

    *chunks, done, _ = got["batch"]
    assert [chunk["event"] for chunk in chunks] == ["chunk"] * 3
    vectors = [vector for chunk in chunks for vector in chunk["body"]["embeddings"]]
    expected = [vector_of([word_id(word) for word in f"text {i}".split()]) for i in range(600)]
    np.testing.assert_allclose(vectors, finish(np.stack(expected), True), atol=1e-6)
    assert (done["body"]["count"], done["body"]["usage"]) == (600, {"tokens": 1200})

    *tokens, done, _ = got["written"]
    assert {token["event"] for token in tokens} == {"token"}
    assert 1 < len(tokens) < 50
    assert "".join(token["body"]["text"] for token in tokens) == "".join(f" {number}" for number in range(50))
    ended = done["body"]
    assert (ended["finish_reason"], ended["seed"], ended["usage"]["completion_tokens"]) == ("length", 7, 50)


@pytest.mark.parametrize("language", CLIENTS)
async def test_nobody_is_there(nats_url: str, language: str) -> None:
    process = await started(CLIENTS[language], nats_url)
    out, _ = await process.communicate()
    assert process.returncode != 0
    assert out == b""


ANSWERS = {
    "ml.embed": {"model": "minilm", "dimensions": 3, "embedding": [0.1, 0.2, 0.3]},
    "ml.similarity": {"results": [{"index": 1, "score": 0.62}]},
}
ERROR = {"error": {"code": 503, "message": "shutting down"}}
ERROR_HEADERS = {"Ml-Event": "error", "Nats-Service-Error-Code": "503", "Nats-Service-Error": "shutting down"}


def echoed(request: Msg) -> dict[str, str]:
    return {"Ml-Request-Id": request.headers["Ml-Request-Id"]}


async def reading(command: list[str], url: str) -> Process:
    """The client, when it has printed both pieces."""
    process = await started(command, url)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        await process.stdout.readuntil(b"stream: one two")
    except asyncio.IncompleteReadError as ended:
        raise AssertionError(f"{command}: {ended.partial!r}, {await process.stderr.read()!r}") from ended
    return process


async def break_off(nc: Client, request: Msg, how: str) -> None:
    if how == "with an error":
        await nc.publish(request.reply, json.dumps(ERROR).encode(), headers=ERROR_HEADERS | echoed(request))
    if how != "in silence":
        await nc.publish(request.reply)


@pytest.mark.parametrize(
    ("how", "said"),
    [("with an error", b"503 shutting down"), ("with the sentinel", b"cut off"), ("in silence", b"cut off")],
)
async def test_a_text_that_breaks_off_is_no_whole_one(nats_url: str, how: str, said: bytes) -> None:
    """Each sample prints the pieces as they come, says that they are not all, and fails: in silence at its time-out."""
    asked: list[Msg] = []

    async with await nats.connect(nats_url) as nc:

        async def answer(request: Msg) -> None:
            asked.append(request)
            if request.subject != "ml.generate":
                await nc.publish(request.reply, json.dumps(ANSWERS[request.subject]).encode())
                return
            for text in ("one", " two"):
                headers = {"Ml-Event": "token"} | echoed(request)
                await nc.publish(request.reply, json.dumps({"text": text}).encode(), headers=headers)

        await nc.subscribe("ml.*", cb=answer)
        await nc.flush()
        # One after the other: on a slow machine a client that starts beside six others gives up connecting.
        processes = {language: await reading(command, nats_url) for language, command in CLIENTS.items()}
        for request in asked:
            if request.subject == "ml.generate":
                await break_off(nc, request, how)
        for language, process in processes.items():
            out, err = await process.communicate()
            assert process.returncode != 0, language
            assert said in out + err, language
            assert b"finish" not in out, language
    assert sorted(request.subject for request in asked) == [
        subject for subject in ("ml.embed", "ml.generate", "ml.similarity") for _ in CLIENTS
    ]
    assert all(request.headers["Ml-Timeout-Ms"] == TIMEOUT_MS for request in asked)
