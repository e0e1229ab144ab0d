"""What may come to lie in the object bucket ml_data: it ends neither a worker nor more than the job that names it.

Nor does it fill the bucket by one object, reach a credential, or take more than its share of the machine to be read.
"""

import asyncio
import base64
import json
import sys
from collections.abc import AsyncIterator
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import nats
import pytest
from job_fixtures import nats_server  # noqa: F401  one for all of them; each has an object and jobs of its own
from nats.aio.client import Client
from nats.js.errors import APIError, BadRequestError
from serve_jobs import Events, JobsWorker, answering, asked, listening

from models.catalogue import load_catalogue
from models.sandbox.limits import ProcessLimits
from models.training.progress import Event, Note
from models.training.run import RunFolder, RunSpec
from service.jobs.objects import MAX_CHUNKS
from service.jobs.step_process import StepCrashed, StepFailed, Steps
from subjects import names

LINES = b'{"anchor":"a","positive":"b"}\n' * 40
DIGEST = f"SHA-256={base64.urlsafe_b64encode(sha256(LINES).digest()).decode()}"
META: dict[str, Any] = {"size": len(LINES), "chunks": 1, "digest": DIGEST}
ITSELF = "itself"
"""Stands for the object's own name."""


@pytest.fixture
def name() -> str:
    """Of an object, of its chunks, and of a job."""
    return uuid4().hex


@pytest.fixture
async def events(nats_url: str) -> AsyncIterator[Events]:
    async with listening(nats_url) as heard:
        yield heard


@pytest.fixture
async def putter(nats_url: str) -> AsyncIterator[Client]:
    async with await nats.connect(nats_url) as nc:
        yield nc


async def put(nc: Client, name: str, meta: dict[str, Any] | bytes, *chunks: bytes) -> None:
    """An object as no program would make it."""
    js = nc.jetstream()
    for chunk in chunks:
        await js.publish(f"$O.ml_data.C.{name}", chunk)
    body = meta if isinstance(meta, bytes) else json.dumps({"name": name, "nuid": name, **meta}).encode()
    subject = f"$O.ml_data.M.{base64.urlsafe_b64encode(name.encode()).decode()}"
    await js.publish(subject, body.replace(ITSELF.encode(), name.encode()), headers={"Nats-Rollup": "sub"})


def link(name: str, bucket: str = "ml_data") -> dict[str, Any]:
    return {**META, "size": 0, "chunks": 0, "options": {"link": {"bucket": bucket, "name": name}}}


@pytest.mark.parametrize(
    ("meta", "code", "words"),
    [
        (link(ITSELF), 422, "is a link"),
        (link("another", "ml_checkpoints"), 422, "is a link"),
        (link(""), 422, "is a link"),
        (b"", 422, "cannot be read"),
        (b"\xff\x00", 422, "cannot be read"),
        (b"null", 422, "cannot be read"),
        (b"[" * 100_000, 422, "cannot be read"),
        (b'{"options":' * 10_000, 422, "cannot be read"),
        ({**META, "more": "x" * 100_000}, 422, "cannot be read"),
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
    worker: JobsWorker, putter: Client, name: str, meta: dict[str, Any] | bytes, code: int, words: str
) -> None:
    async with answering(worker):
        await put(putter, name, meta)
        answer = await asked(putter, names.FINETUNE, json.dumps({"object": name, "id": name}))
        assert (answer["error"]["code"], words in answer["error"]["message"]) == (code, True), answer
        assert (await asked(putter, names.JOBS_GET, name))["error"]["code"] == 404  # it answers, and there is no job


NOT_WHAT_THEY_SAY: list[tuple[dict[str, Any], tuple[bytes, ...], str]] = [
    (META, (), "chunk 1 of 1 is missing"),
    ({**META, "chunks": 2}, (LINES[:100],), "chunk 2 of 2 is missing"),
    ({**META, "chunks": 8_000}, (LINES,), "chunk 2 of 8000 is missing"),
    ({**META, "chunks": 8_000}, (b"", b"", b""), "chunk 4 of 8000 is missing"),
    ({**META, "chunks": 0}, (LINES,), "has not the 1200 bytes"),
    ({**META, "chunks": 3}, (LINES, LINES), "has not the 1200 bytes"),
    ({**META, "size": 1199}, (LINES,), "has not the 1199 bytes"),
    (META, (LINES[:-1] + b" ",), "SHA-256 is not the one"),
    ({**META, "digest": ""}, (LINES,), "SHA-256 is not the one"),
    ({**META, "digest": "SHA-256=é\0"}, (LINES,), "SHA-256 is not the one"),
]


async def test_jobs_on_objects_that_are_not_what_they_say_end_at_once(
    worker: JobsWorker, events: Events, putter: Client
) -> None:
    for number, (meta, chunks, _) in enumerate(NOT_WHAT_THEY_SAY):
        await put(putter, f"object-{number}", meta, *chunks)
        await worker.submit(f"job-{number}", object=f"object-{number}")
    for number, (*_, words) in enumerate(NOT_WHAT_THEY_SAY):
        job = await events.until_over(f"job-{number}")
        assert (job.state, job.attempt, words in str(job.reason)) == ("failed", 1, True), job.reason


@pytest.mark.slow
async def test_an_object_that_becomes_a_link_once_its_job_waits_ends_that_job(
    worker: JobsWorker, events: Events, putter: Client, name: str
) -> None:
    worker.script.write(collect=["hold"])
    await worker.submit(f"{name}-before")
    await put(putter, name, META, LINES)
    await worker.submit(name, object=name)
    await put(putter, name, link(name))
    await worker.store.request_cancel(f"{name}-before")
    job = await events.until_over(name)
    assert (job.state, job.attempt) == ("failed", 1)
    assert "links are not followed" in str(job.reason)


async def test_one_object_has_room_for_a_gigabyte_and_no_more(events: Events, putter: Client, name: str) -> None:
    js = putter.jetstream()
    with pytest.raises(BadRequestError, match="message size exceeds"):
        await js.publish(f"$O.ml_data.C.{name}", bytes(2**18))
    for _ in range(0, MAX_CHUNKS, 512):
        await asyncio.gather(*(js.publish(f"$O.ml_data.C.{name}", b"") for _ in range(512)))
    with pytest.raises(APIError, match="maximum messages per subject exceeded"):
        await js.publish(f"$O.ml_data.C.{name}", b"")
    await js.publish("$O.ml_data.C.another", b"")  # there is room for others


# How what it holds is read


async def step(program: str, folder: Path, limits: ProcessLimits) -> list[Event]:
    """What a step says that is this program."""
    said: list[Event] = []
    await Steps(1, (sys.executable, "-c", program), grace_s=0.1).run("collect", folder, said.append, limits)
    return said


async def test_the_process_that_reads_has_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NATS_PASSWORD", "NATS_URL", "MLBUS_ADMIN_PASSWORD", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "a secret")
    program = (
        "import os\n"
        "from models.training.progress import Note, emit\n"
        "emit(Note(text=' '.join(sorted(n for n, v in os.environ.items() if v == 'a secret' or 'NATS' in n))))"
    )
    assert await step(program, tmp_path, ProcessLimits(2**31, 60, 1000)) == [Note(text="")]


@pytest.mark.parametrize(
    ("program", "limits", "raised", "words"),
    [
        ("b'x' * 2**30", ProcessLimits(2**28, 60, 1000), StepCrashed, "MemoryError"),
        ("while True: pass", ProcessLimits(2**30, 1, 1000), StepFailed, "1 s of processor time"),
        ("import time; time.sleep(1e6)", ProcessLimits(2**30, 60, 0.5), StepFailed, "takes too long"),
    ],
)
async def test_the_process_that_reads_is_limited(
    tmp_path: Path, program: str, limits: ProcessLimits, raised: type[Exception], words: str
) -> None:
    with pytest.raises(raised, match=words):
        await step(program, tmp_path, limits)


async def test_pairs_that_take_more_memory_than_is_allowed_fail_the_job_and_say_so(tmp_path: Path) -> None:
    """Read by the real step."""
    run = RunFolder(tmp_path)
    given = tmp_path / "given.jsonl"
    text = "x" * 900_000
    given.write_text("".join(f'{{"anchor":"{n} {text}","positive":"{n}"}}\n' for n in range(200)))
    spec = RunSpec(
        job="one",
        entry=load_catalogue({}).get("minilm"),
        base=tmp_path,
        parent="base",
        given=given,
        training_data=tmp_path / "data",
        day=date(2030, 1, 1),
    )
    run.spec.write_text(spec.model_dump_json())
    with pytest.raises(StepFailed, match="out of memory; give it less at once"):
        await Steps(1).run("collect", tmp_path, lambda event: None, ProcessLimits(200_000_000, 60, 1000))
