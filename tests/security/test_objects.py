"""What anybody may put into the object bucket ml_data: it ends neither a worker nor more than the job that names it."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import nats
import pytest
from fake_steps import Script
from nats.aio.client import Client
from serve_jobs import Events, JobsWorker, answering, asked, jobs_worker, listening, set_up

from subjects import names

LINES = b'{"anchor":"a","positive":"b"}\n' * 40
DIGEST = f"SHA-256={base64.urlsafe_b64encode(sha256(LINES).digest()).decode()}"
META: dict[str, Any] = {"name": "it", "nuid": "n1", "size": len(LINES), "chunks": 1, "digest": DIGEST}


@pytest.fixture
async def events(nats_url: str) -> AsyncIterator[Events]:
    await set_up(nats_url)
    async with listening(nats_url) as heard:
        yield heard


@pytest.fixture
async def worker(nats_url: str, tmp_path: Path, events: Events) -> AsyncIterator[JobsWorker]:
    async with jobs_worker(nats_url, tmp_path / "data", Script(tmp_path / "script").write()) as running:
        yield running


@pytest.fixture
async def anybody(nats_url: str) -> AsyncIterator[Client]:
    async with await nats.connect(nats_url) as nc:
        yield nc


async def put(nc: Client, meta: dict[str, Any] | bytes, *chunks: bytes) -> None:
    """An object `it` as no client would make it."""
    js = nc.jetstream()
    for chunk in chunks:
        await js.publish("$O.ml_data.C.n1", chunk)
    body = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
    name = base64.urlsafe_b64encode(b"it").decode()
    await js.publish(f"$O.ml_data.M.{name}", body, headers={"Nats-Rollup": "sub"})


def link(name: str, bucket: str = "ml_data") -> dict[str, Any]:
    return {**META, "size": 0, "chunks": 0, "options": {"link": {"bucket": bucket, "name": name}}}


@pytest.mark.parametrize(
    ("meta", "code", "words"),
    [
        (link("it"), 422, "is a link"),
        (link("another", "ml_checkpoints"), 422, "is a link"),
        (link(""), 422, "is a link"),
        (b"", 422, "cannot be read"),
        (b"\xff\x00", 422, "cannot be read"),
        (b"null", 422, "cannot be read"),
        (b"[" * 500_000, 422, "cannot be read"),
        (b'{"options":' * 50_000, 422, "cannot be read"),
        ({**META, "more": "x" * 1_000_000}, 422, "cannot be read"),
        ({**META, "nuid": "*"}, 422, "cannot be read"),
        ({**META, "nuid": ">"}, 422, "cannot be read"),
        ({**META, "nuid": "a b"}, 422, "cannot be read"),
        ({**META, "size": -1}, 422, "cannot be read"),
        ({**META, "size": "9" * 10_000}, 422, "cannot be read"),
        ({**META, "size": 10**12}, 413, "are the most"),
        ({**META, "chunks": 10**9}, 413, "are the most"),
        ({**META, "deleted": True}, 404, "there is no object"),
    ],
)
async def test_an_object_that_cannot_be_read_is_refused_at_once(
    worker: JobsWorker, anybody: Client, meta: dict[str, Any] | bytes, code: int, words: str
) -> None:
    async with answering(worker):
        await put(anybody, meta)
        answer = await asked(anybody, names.FINETUNE, json.dumps({"object": "it"}))
        assert (answer["error"]["code"], words in answer["error"]["message"]) == (code, True), answer
        assert await asked(anybody, names.JOBS_LIST, "") == {"jobs": []}  # it still answers


@pytest.mark.parametrize(
    ("meta", "chunks", "words"),
    [
        (META, (), "chunk 1 of 1 is missing"),
        ({**META, "chunks": 2}, (LINES[:100],), "chunk 2 of 2 is missing"),
        ({**META, "chunks": 16_000}, (LINES,), "chunk 2 of 16000 is missing"),
        ({**META, "chunks": 16_000}, (b"", b"", b""), "chunk 4 of 16000 is missing"),
        ({**META, "chunks": 0}, (LINES,), "has not the 1200 bytes"),
        ({**META, "chunks": 3}, (LINES, LINES), "has not the 1200 bytes"),
        ({**META, "size": 1199}, (LINES,), "has not the 1199 bytes"),
        (META, (LINES[:-1] + b" ",), "SHA-256 is not the one"),
        ({**META, "digest": ""}, (LINES,), "SHA-256 is not the one"),
        ({**META, "digest": "SHA-256=é\0"}, (LINES,), "SHA-256 is not the one"),
    ],
)
async def test_a_job_on_an_object_that_is_not_what_it_says_ends_at_once(
    worker: JobsWorker, events: Events, anybody: Client, meta: dict[str, Any], chunks: tuple[bytes, ...], words: str
) -> None:
    await put(anybody, meta, *chunks)
    await worker.submit("bad", object="it")
    await worker.submit("good")
    bad = await events.until_over("bad")
    assert (bad.state, bad.attempt, words in str(bad.reason)) == ("failed", 1, True), bad.reason
    assert (await events.until_over("good")).state == "done"


async def test_an_object_that_becomes_a_link_once_its_job_waits_ends_that_job(
    worker: JobsWorker, events: Events, anybody: Client
) -> None:
    worker.script.write(collect=["hold"])
    await worker.submit("first")
    await put(anybody, META, LINES)
    await worker.submit("second", object="it")
    await put(anybody, link("it"))
    await asyncio.gather(events.until("first", "collecting"), worker.store.request_cancel("first"))
    second = await events.until_over("second")
    assert (second.state, second.attempt) == ("failed", 1)
    assert "links are not followed" in str(second.reason)
