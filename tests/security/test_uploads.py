"""What clients upload: it becomes the object that they meant or none, and is no other client's to change."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
import pytest
from fake_steps import Script
from job_fixtures import nats_server  # noqa: F401  one for all of them; each has uploads and jobs of its own
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import ObjectNotFoundError
from nats.js.object_store import ObjectStore
from nats_server import NatsServer, as_role
from serve_jobs import JobsWorker, answering, jobs_worker, listening, set_up
from uploading import read, send_all, sent, stored, subjects_of

from service.jobs import uploads
from service.jobs.setup import DAY_S
from subjects import MLClient, codec, names
from subjects.client import jobs as jobs_client
from subjects.errors import Busy
from subjects.uploads import CHUNK_BYTES

PAIRS = [(f"anchor {number}", "é" * 200) for number in range(2000)]
FIRST, SECOND, LAST = bytes(CHUNK_BYTES), b"\1" * CHUNK_BYTES, b"the rest"


@pytest.fixture
def upload() -> str:
    return str(uuid4())


@pytest.fixture
async def worker(nats_url: str, tmp_path: Path) -> AsyncIterator[JobsWorker]:
    async with jobs_worker(nats_url, tmp_path / "data", Script(tmp_path / "script").write()) as running:
        yield running


@pytest.fixture
async def nc(worker: JobsWorker) -> AsyncIterator[Client]:
    async with answering(worker) as client:
        yield client


@pytest.fixture
async def bucket(worker: JobsWorker) -> ObjectStore:
    return await worker.nc.jetstream().object_store(names.DATA_BUCKET)


@pytest.mark.parametrize("role", ["client", "local"])
async def test_a_client_trains_on_many_pairs(secured_server: NatsServer, tmp_path: Path, role: str) -> None:
    await set_up(admin := as_role(secured_server, "admin"))
    url, prefix = (
        (as_role(secured_server, role), "_INBOX_ml.client") if role == "client" else (secured_server.url, "_INBOX")
    )
    script = Script(tmp_path / "script").write()
    async with (
        listening(admin) as events,
        jobs_worker(
            as_role(secured_server, "worker"), tmp_path / "data", script, inbox_prefix="_INBOX_worker"
        ) as worker,
        answering(worker),
        await MLClient.connect(url, inbox_prefix=prefix) as ml,
    ):
        begun = await ml.finetune(pairs=PAIRS, model="a")
        job = await events.until_over(begun.job, timeout_s=60)
        assert (job.state, "kept as a candidate" in str(job.reason)) == ("done", True)
        lines = (await read(worker, job.source.split("'")[1])).splitlines()
        assert [tuple(json.loads(line).values()) for line in lines] == PAIRS


async def test_chunks_become_an_object_that_others_read_too(nc: Client, upload: str, bucket: ObjectStore) -> None:
    answer = await send_all(nc, upload, FIRST, SECOND, LAST)
    assert answer["object"] == upload
    assert (await bucket.get(upload)).data == FIRST + SECOND + LAST


async def test_json_carries_base64(nc: Client, upload: str, bucket: ObjectStore) -> None:
    data = base64.b64encode(LAST).decode()
    body = json.dumps({"upload": upload, "data": data, "sha256": sha256(LAST).hexdigest()}).encode()
    assert json.loads((await nc.request(names.FINETUNE_UPLOAD, body, timeout=10)).data)["object"] == upload
    assert (await bucket.get(upload)).data == LAST


async def test_two_uploads_at_once_keep_apart(nc: Client, bucket: ObjectStore) -> None:
    two = {uuid4().hex: (FIRST, SECOND, LAST), uuid4().hex: (SECOND, FIRST, FIRST)}
    await asyncio.gather(*(send_all(nc, upload, *chunks) for upload, chunks in two.items()))
    for upload, chunks in two.items():
        assert (await bucket.get(upload)).data == b"".join(chunks)


async def test_a_chunk_sent_again_is_there_once(
    nc: Client, upload: str, worker: JobsWorker, bucket: ObjectStore
) -> None:
    first = await sent(nc, upload, FIRST)
    second = await sent(nc, upload, SECOND, first["sequence"])
    again = await asyncio.gather(*(sent(nc, upload, FIRST) for _ in range(5)))
    assert again == [first] * 5
    assert await sent(nc, upload, SECOND, first["sequence"]) == second
    digest = sha256(FIRST + SECOND + LAST).hexdigest()
    ends = await asyncio.gather(*(sent(nc, upload, LAST, second["sequence"], digest) for _ in range(5)))
    assert {end.get("object") for end in ends} == {upload}
    assert await stored(worker, upload) == 3
    assert (await bucket.get(upload)).data == FIRST + SECOND + LAST


async def test_a_chunk_that_is_not_the_next_one_is_refused(nc: Client, upload: str, worker: JobsWorker) -> None:
    digest = sha256(LAST).hexdigest()
    refused = [await sent(nc, upload, FIRST, 10**9), await sent(nc, upload, LAST, 7, digest)]
    first = await sent(nc, upload, FIRST)
    refused += [await sent(nc, upload, SECOND), await sent(nc, upload, SECOND, first["sequence"] + 1)]
    refused.append(await sent(nc, upload, LAST, 0, digest))
    assert [answer["error"]["code"] for answer in refused] == [409] * 5
    assert "'after'" in refused[0]["error"]["message"]
    assert await stored(worker, upload) == 1


async def test_what_has_ended_stays_as_it_is(nc: Client, upload: str, worker: JobsWorker) -> None:
    """Also for who knows its id, and whatever follows."""
    end = await send_all(nc, upload, FIRST, LAST)
    other = await sent(nc, upload, b"more", end["sequence"], sha256(b"more").hexdigest())
    assert (other["error"]["code"], "'sha256'" in other["error"]["message"]) == (409, True)
    (subject,) = await subjects_of(worker, upload)
    last = await worker.nc.jetstream().get_last_msg("OBJ_ml_data", subject)
    assert "error" not in await sent(nc, upload, SECOND, last.seq or 0)
    assert await read(worker, upload) == FIRST + LAST


async def test_an_object_of_the_administrators_is_not_replaced(nc: Client, upload: str, bucket: ObjectStore) -> None:
    await bucket.put(upload, b"theirs")
    assert (await send_all(nc, upload, LAST))["error"]["code"] == 409
    assert (await bucket.get(upload)).data == b"theirs"


async def test_an_upload_that_does_not_end_is_no_object_and_goes_after_a_day(
    nc: Client, upload: str, worker: JobsWorker, bucket: ObjectStore
) -> None:
    await sent(nc, upload, FIRST)
    with pytest.raises(ObjectNotFoundError):
        await bucket.get(upload)
    answer = json.loads((await nc.request(names.FINETUNE, json.dumps({"object": upload}).encode(), timeout=10)).data)
    assert (answer["error"]["code"], names.FINETUNE_UPLOAD in answer["error"]["message"]) == (404, True)
    assert (await worker.nc.jetstream().stream_info("OBJ_ml_data")).config.max_age == DAY_S


async def test_a_wrong_digest_ends_the_job(nc: Client, upload: str, worker: JobsWorker, nats_url: str) -> None:
    answer = await send_all(nc, upload, FIRST, LAST, digest=sha256(b"other").hexdigest())
    async with listening(nats_url) as events:
        await worker.submit(upload, object=answer["object"])
        job = await events.until_over(upload)
    assert (job.state, job.attempt, "SHA-256 is not the one" in str(job.reason)) == ("failed", 1, True)


ENOUGH = base64.b64encode(FIRST).decode()
RIGHT = {"upload": "u" * 32, "data": ENOUGH}


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ({**RIGHT, "data": base64.b64encode(FIRST + b"x").decode()}, 413, "'data'"),
        ({**RIGHT, "data": base64.b64encode(LAST).decode()}, 422, "131072 are a chunk"),
        ({**RIGHT, "data": ""}, 422, "'data'"),
        ({**RIGHT, "data": "%" * 100}, 422, "base64"),
        ({**RIGHT, "data": "é"}, 422, "base64"),
        ({**RIGHT, "data": 5}, 422, "'data'"),
        ({**RIGHT, "data": None}, 422, "'data'"),
        ({"upload": "u" * 32}, 422, "'data' is missing"),
        ({"data": ENOUGH}, 422, "'upload' is missing"),
        ({**RIGHT, "upload": "u" * 31}, 422, "'upload'"),
        ({**RIGHT, "upload": "u" * 65}, 422, "'upload'"),
        ({**RIGHT, "upload": "*" * 32}, 422, "'upload'"),
        ({**RIGHT, "upload": "a." * 16}, 422, "'upload'"),
        ({**RIGHT, "upload": "a\r\n" * 16}, 422, "'upload'"),
        ({**RIGHT, "after": -1}, 422, "'after'"),
        ({**RIGHT, "after": 2**63}, 422, "'after'"),
        ({**RIGHT, "after": "1\r\nNats-Rollup: all"}, 422, "'after'"),
        ({**RIGHT, "sha256": "0" * 63}, 422, "'sha256'"),
        ({**RIGHT, "sha256": "G" * 64}, 422, "'sha256'"),
        ({**RIGHT, "bucket": "ml_checkpoints"}, 422, "unknown field 'bucket'"),
        ([], 422, "must be a map"),
        ("text", 415, "plain text"),
    ],
)
async def test_what_is_no_chunk_is_refused(nc: Client, worker: JobsWorker, body: Any, code: int, words: str) -> None:
    before = (await worker.nc.jetstream().stream_info("OBJ_ml_data")).state.last_seq
    sent = body if isinstance(body, str) else json.dumps(body)
    answer = json.loads((await nc.request(names.FINETUNE_UPLOAD, sent.encode(), timeout=10)).data)
    assert (answer["error"]["code"], words in answer["error"]["message"]) == (code, True), answer
    assert (await worker.nc.jetstream().stream_info("OBJ_ml_data")).state.last_seq == before


async def test_an_upload_has_a_gigabyte_at_most(
    nc: Client, upload: str, worker: JobsWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gigabyte stands for less here."""
    monkeypatch.setattr(uploads, "MAX_GIVEN_BYTES", 2 * CHUNK_BYTES)
    assert "object" in await send_all(nc, uuid4().hex, FIRST, SECOND)
    assert (await send_all(nc, uuid4().hex, FIRST, SECOND, LAST))["error"]["code"] == 413
    sequence = 0
    for _ in range(4):
        sequence = (await sent(nc, upload, FIRST, sequence))["sequence"]
    refused = await sent(nc, upload, FIRST, sequence)
    assert (refused["error"]["code"], refused["error"]["retryable"]) == (413, False)
    assert await stored(worker, upload) == 4


@pytest.mark.parametrize("bound", ["MAX_BYTES", "MAX_MESSAGES"])
async def test_the_rest_of_the_bucket_is_the_administrators(
    nc: Client, upload: str, worker: JobsWorker, bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    first = await sent(nc, upload, FIRST)
    with monkeypatch.context() as patched:
        patched.setattr(uploads, bound, 1)
        refused = await sent(nc, upload, SECOND, first["sequence"])
        assert (refused["error"]["code"], refused["error"]["retry_after_ms"]) == (429, 60_000)
        with pytest.raises(Busy):
            await MLClient(nc).finetune(pairs=PAIRS)
        await bucket.put(f"{upload}-theirs", FIRST)
    assert "error" not in await sent(nc, upload, SECOND, first["sequence"])


async def test_a_bucket_that_is_full_takes_the_chunk_later(nc: Client, upload: str, worker: JobsWorker) -> None:
    js = worker.nc.jetstream()
    first = await sent(nc, upload, FIRST)
    info = await js.stream_info("OBJ_ml_data")
    await js.update_stream(info.config.evolve(max_bytes=info.state.bytes + 1))
    try:
        refused = await sent(nc, upload, SECOND, first["sequence"])
        assert (refused["error"]["code"], refused["error"]["retryable"]) == (429, True)
    finally:
        await js.update_stream(info.config)
    assert "error" not in await sent(nc, upload, SECOND, first["sequence"])


async def test_an_upload_goes_on_at_another_worker(
    nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker is gone after it has taken a chunk, without a word."""
    monkeypatch.setattr(jobs_client, "CHUNK_TIMEOUT_S", 0.5)
    async with AsyncExitStack() as stack:
        script = Script(tmp_path / "script").write()
        one, two = [
            await stack.enter_async_context(jobs_worker(nats_url, tmp_path / name, script, name, takes_jobs=False))
            for name in ("one", "two")
        ]
        for worker in (one, two):
            await stack.enter_async_context(answering(worker))
        publish, taken = one.nc.publish, asyncio.Event()

        async def leave(subject: str, *message: Any, **fields: Any) -> None:
            if subject.startswith("$O.ml_data.C."):
                await publish(subject, *message, **fields)
                await one.nc.flush()
                await one.nc.close()
                taken.set()
            else:
                await publish(subject, *message, **fields)

        monkeypatch.setattr(one.nc, "publish", leave)
        nc = await stack.enter_async_context(await nats.connect(nats_url))
        heard: list[Msg] = []

        async def hear(msg: Msg) -> None:
            heard.append(msg)

        await nc.subscribe(names.FINETUNE, cb=hear)
        many = [(f"anchor {number}", "b" * 2000) for number in range(4000)]
        begun = await MLClient(nc).finetune(pairs=many)
        assert taken.is_set()
        assert (await MLClient(nc).jobs.cancel(begun.job)).state == "cancelled"
        name = codec.loads(heard[0].data, names.MSGPACK)["object"]
        assert (await read(two, name)).count(b"\n") == len(many)
