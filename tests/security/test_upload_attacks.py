"""Uploads under attack by a client with no other rights: it costs nobody else their upload, or the room for one."""

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
import pytest
from fake_steps import Script
from job_fixtures import nats_server  # noqa: F401  one for all of them; each has uploads of its own
from nats.aio.client import Client
from serve_jobs import JobsWorker, answering, jobs_worker
from uploading import read, send_all, sent, stored

from service.jobs import uploads
from subjects import codec, names
from subjects.errors import InvalidField, NotFound
from subjects.uploads import CHUNK_BYTES

FIRST, SECOND, LAST = bytes(CHUNK_BYTES), b"\1" * CHUNK_BYTES, b"the rest"
DIGEST = sha256(LAST).hexdigest()
BUCKET_STREAM = "OBJ_ml_data"


@pytest.fixture
def upload() -> str:
    return uuid4().hex


@pytest.fixture
async def serving(worker: JobsWorker) -> AsyncIterator[JobsWorker]:
    """A worker that answers; the bucket holds nothing yet."""
    await worker.nc.jetstream().purge_stream(BUCKET_STREAM)
    async with answering(worker):
        yield worker


@pytest.fixture
async def alice(serving: JobsWorker) -> AsyncIterator[Client]:
    async with await nats.connect(serving.settings.nats_url, inbox_prefix="_INBOX_ml.alice") as client:
        yield client


@pytest.fixture
async def mallory(serving: JobsWorker) -> AsyncIterator[Client]:
    async with await nats.connect(serving.settings.nats_url, inbox_prefix="_INBOX_ml.mallory") as client:
        yield client


def code(answer: dict[str, Any]) -> int:
    """Of an error; 0 if it is none."""
    return int(answer.get("error", {}).get("code", 0))


async def test_who_floods_leaves_others_as_much_room_as_it_has(
    alice: Client, mallory: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never ends its uploads; nothing of them goes for a day."""
    monkeypatch.setattr(uploads, "MAX_BYTES", 16 * CHUNK_BYTES)
    taken, refused = 0, {}
    while not refused:
        answer = await sent(mallory, uuid4().hex, FIRST)
        refused, taken = answer.get("error", {}), taken + 1
    assert (refused["code"], refused["retryable"], refused["retry_after_ms"]) == (429, True, 60_000)
    assert taken == pytest.approx(8, abs=2)
    assert "object" in await send_all(alice, uuid4().hex, FIRST, SECOND, FIRST, LAST)


async def test_one_upload_without_an_end_leaves_others_room_too(
    alice: Client, mallory: Client, upload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_BYTES", 16 * CHUNK_BYTES)
    answer = await sent(mallory, upload, FIRST)
    while not code(answer):
        answer = await sent(mallory, upload, FIRST, answer["sequence"])
    assert code(answer) == 429
    assert "object" in await send_all(alice, uuid4().hex, FIRST, SECOND, FIRST, LAST)


async def test_chunks_of_a_byte_leave_others_as_many_messages(
    alice: Client, mallory: Client, upload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the end of an upload chunks may be as short: they take no room, but messages."""
    monkeypatch.setattr(uploads, "MAX_MESSAGES", 16)
    answer = await sent(mallory, upload, b"a", digest=DIGEST)
    while not code(answer):
        answer = await sent(mallory, upload, b"a", answer["sequence"], DIGEST)
    assert code(answer) == 429
    assert "object" in await send_all(alice, uuid4().hex, FIRST, LAST)


async def test_uploads_of_a_byte_are_bounded_by_their_number(
    alice: Client, mallory: Client, serving: JobsWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes two of the messages that the bucket holds; begun ones can still be ended."""
    monkeypatch.setattr(uploads, "MAX_UPLOADS", 4)
    begun = [uuid4().hex for _ in range(4)]
    first = [await sent(mallory, each, FIRST) for each in begun]
    assert [code(await sent(mallory, uuid4().hex, LAST, digest=DIGEST)) for _ in range(3)] == [429] * 3
    ends = [
        await sent(mallory, each, LAST, answer["sequence"], DIGEST) for each, answer in zip(begun, first, strict=True)
    ]
    assert [end["object"] for end in ends] == begun
    assert "object" in await send_all(alice, uuid4().hex, LAST)
    assert (await serving.nc.jetstream().stream_info(BUCKET_STREAM)).state.messages == 4 * 3 + 2


async def test_who_knows_anothers_id_and_chunks_changes_nothing_of_its_upload(
    alice: Client, mallory: Client, serving: JobsWorker, upload: str
) -> None:
    first = await sent(alice, upload, FIRST)
    at = first["sequence"]
    attacks = [
        await sent(mallory, upload, SECOND, at),
        await sent(mallory, upload, LAST, at, DIGEST),
        await sent(mallory, upload, FIRST, at - 1, sha256(FIRST).hexdigest()),
    ]
    assert [code(answer) for answer in attacks] == [409] * 3
    own = await sent(mallory, upload, SECOND)  # an upload of its own, of the same name
    second = await sent(alice, upload, SECOND, at)
    end = await sent(alice, upload, LAST, second["sequence"], sha256(FIRST + SECOND + LAST).hexdigest())
    assert end["object"] == upload
    assert code(await sent(mallory, upload, LAST, own["sequence"], DIGEST)) == 409
    assert await read(serving, upload) == FIRST + SECOND + LAST


@pytest.mark.parametrize("after", [1, 2**31, 2**32, 2**53 + 1, 2**63 - 1])
async def test_any_sequence_gets_an_answer(mallory: Client, serving: JobsWorker, upload: str, after: int) -> None:
    assert code(await sent(mallory, upload, FIRST, after)) == 409
    assert code(await sent(mallory, upload, LAST, after, DIGEST)) == 409
    assert await stored(serving, upload) == 0


async def test_several_ends_at_once_make_a_whole_object_or_one_that_no_job_takes(
    mallory: Client, serving: JobsWorker, upload: str
) -> None:
    """Its own harm: other chunks come between its last chunk and the object's metadata."""
    first = await sent(mallory, upload, FIRST)
    tails = [b"one end", b"another end", SECOND]
    answers = await asyncio.gather(
        *(
            sent(mallory, upload, tail, first["sequence"] + late, sha256(FIRST + tail).hexdigest())
            for tail in tails
            for late in (0, 1, 2)
        )
    )
    assert {code(answer) for answer in answers} <= {0, 409}
    with suppress(InvalidField, NotFound):
        assert await read(serving, upload) in [FIRST + tail for tail in tails]


async def test_replays_from_many_sides_change_nothing(
    mallory: Client, serving: JobsWorker, upload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "LOOKUPS_S", 1000)
    end = await send_all(mallory, upload, FIRST, SECOND, LAST)
    before = (await serving.nc.jetstream().stream_info(BUCKET_STREAM)).state.last_seq
    for _ in range(2):
        answers = await asyncio.gather(
            *(
                sent(mallory, upload, chunk, after)
                for chunk in (FIRST, SECOND)
                for after in (0, 1, 2, end["sequence"] - 1)
            )
        )
        assert {code(answer) for answer in answers} <= {0, 409, 429}
    assert (await serving.nc.jetstream().stream_info(BUCKET_STREAM)).state.last_seq == before
    assert await read(serving, upload) == FIRST + SECOND + LAST


async def test_garbage_is_refused_and_stores_nothing(mallory: Client, serving: JobsWorker, upload: str) -> None:
    draw = random.Random(7)
    whole = codec.dumps({"upload": upload, "data": FIRST, "after": 0}, names.MSGPACK)
    bodies = [draw.randbytes(draw.randrange(1, 500)) for _ in range(50)]
    bodies += [whole[: draw.randrange(1, len(whole) - 1)] for _ in range(20)]
    bodies += [b"[" * 10_000, b'{"data":' * 10_000, b"\x81" * 10_000, b"{" + b'"upload":"x",' * 5000, b"\x00"]
    bodies += [json.dumps({"upload": upload, "data": "A" * 900_000, "sha256": "0" * 64}).encode()]
    headers = [{}, {names.CONTENT_TYPE: names.MSGPACK}, {names.CONTENT_TYPE: names.JSON}]
    for body in bodies:
        reply = await mallory.request(names.FINETUNE_UPLOAD, body, timeout=10, headers=draw.choice(headers))
        assert reply.headers[names.ERROR_CODE] in ("400", "406", "413", "415", "422"), body[:40]
    assert (await serving.nc.jetstream().stream_info(BUCKET_STREAM)).state.messages == 0
    assert "object" in await send_all(mallory, upload, LAST)


async def test_many_uploads_at_once_are_each_whole(mallory: Client, serving: JobsWorker) -> None:
    parts = {uuid4().hex: (FIRST, draw.to_bytes(2, "big") * (CHUNK_BYTES // 2), LAST) for draw in range(10)}
    ends = await asyncio.gather(*(send_all(mallory, each, *chunks) for each, chunks in parts.items()))
    assert {end["object"] for end in ends} == parts.keys()
    for each, chunks in parts.items():
        assert await read(serving, each) == b"".join(chunks)


async def test_a_bucket_that_fills_before_the_end_is_written_ends_the_upload_later(
    mallory: Client, serving: JobsWorker, upload: str
) -> None:
    js = serving.nc.jetstream()
    first = await sent(mallory, upload, FIRST)
    info = await js.stream_info(BUCKET_STREAM)
    digest = sha256(FIRST + LAST).hexdigest()
    await js.update_stream(info.config.evolve(max_bytes=info.state.bytes + 200))
    try:
        refused = await sent(mallory, upload, LAST, first["sequence"], digest)
        assert (code(refused), await stored(serving, upload)) == (429, 2)
    finally:
        await js.update_stream(info.config)
    assert (await sent(mallory, upload, LAST, first["sequence"], digest))["object"] == upload
    assert await read(serving, upload) == FIRST + LAST


async def test_a_worker_that_dies_before_the_end_is_written_costs_nothing(
    nats_url: str, tmp_path: Path, upload: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        script = Script(tmp_path / "script").write()
        one, two = [
            await stack.enter_async_context(jobs_worker(nats_url, tmp_path / name, script, name, takes_jobs=False))
            for name in ("one", "two")
        ]
        nc = await stack.enter_async_context(answering(one))
        first = await sent(nc, upload, FIRST)
        publish, gone = one.nc.publish, asyncio.Event()

        async def die(subject: str, *message: Any, **fields: Any) -> None:
            if subject.startswith("$O.ml_data.M."):
                await one.nc.close()
                gone.set()
            await publish(subject, *message, **fields)

        monkeypatch.setattr(one.nc, "publish", die)
        digest = sha256(FIRST + LAST).hexdigest()
        lost = asyncio.create_task(sent(nc, upload, LAST, first["sequence"], digest))
        await asyncio.wait_for(gone.wait(), 10)
        lost.cancel()
        await stack.enter_async_context(answering(two))
        assert (await sent(nc, upload, LAST, first["sequence"], digest))["object"] == upload
        assert await read(two, upload) == FIRST + LAST
