"""`MLClient`'s fine-tuning against a worker that answers as it is told: what is sent, and what is heard of a job."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats_server import NatsServer
from scripted_jobs import JobsWorker, job, scripted_jobs

from subjects import MLClient, TrainingPair, names
from subjects.client.attempts import Pauses
from subjects.errors import (
    Busy,
    Cancelled,
    Forbidden,
    Internal,
    InvalidField,
    MLError,
    NotFound,
    NotServed,
    Unavailable,
)
from subjects.uploads import CHUNK_BYTES, in_chunks


@pytest.fixture
async def worker(nats_url: str) -> AsyncIterator[JobsWorker]:
    async with scripted_jobs(nats_url) as worker:
        yield worker


async def test_a_codebase_is_named_and_the_options_go_along(worker: JobsWorker, ml: MLClient) -> None:
    reply = await ml.finetune(path=Path("/code"), model="a", id="mine", swap=True, epochs=2, learning_rate=2e-5)
    assert (reply.job, reply.duplicate) == ("mine", False)
    options = {"epochs": 2, "learning_rate": 2e-5}
    sent = {"id": "mine", "model": "a", "path": "/code", "swap": True, "options": options}
    assert worker.asked == [(names.FINETUNE, sent)]


async def test_each_call_is_a_job_of_its_own(worker: JobsWorker, ml: MLClient) -> None:
    assert (await ml.finetune(path="/code")).job != (await ml.finetune(path="/code")).job


async def test_pairs_may_be_written_in_several_ways(worker: JobsWorker, ml: MLClient) -> None:
    pairs = [
        ("a", "b"),
        ["a", "b", "c"],
        ("a", "b", ("c", "d")),
        {"anchor": "a", "positive": "b"},
        TrainingPair(anchor="a", positive="b", negatives=["c"]),
    ]
    await ml.finetune(pairs=pairs)
    sent = worker.asked[0][1]["pairs"]
    assert all((pair["anchor"], pair["positive"]) == ("a", "b") for pair in sent)
    assert [pair.get("negatives", []) for pair in sent] == [[], ["c"], ["c", "d"], [], ["c"]]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "exactly one of path, pairs and object"),
        ({"path": "/code", "object": "x"}, "exactly one of path, pairs and object"),
        ({"path": ""}, "field 'path'"),
        ({"path": "/code", "id": "no spaces"}, "field 'id'"),
        ({"path": "/code", "id": ""}, "field 'id'"),
        ({"path": "/code", "learning_rate": float("nan")}, "field 'learning_rate'"),
        ({"path": "/code", "epochs": 0}, "field 'epochs'"),
        ({"path": "/code", "epoch": 1}, "unknown field 'epoch'"),
        ({"pairs": []}, "field 'pairs'"),
        ({"pairs": [("a", "b"), ("a",)]}, "field 'pairs.1' must be a map"),
        ({"pairs": [("a", "b"), "ab"]}, "field 'pairs.1' must be a map"),
        ({"pairs": [("a", "b"), ("a", " ")]}, "field 'pairs.1.positive': the text is empty"),
        ({"pairs": [("a", "b", None)]}, "field 'pairs.0.negatives.0'"),
        ({"pairs": [{"anchor": "a", "positives": "b"}]}, "unknown field 'pairs.0.positives'"),
        ({"pairs": [("a", "b", "b")]}, "field 'pairs.0': its positive is among its negatives"),
    ],
)
async def test_what_is_wrong_is_refused_here(
    worker: JobsWorker, ml: MLClient, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidField, match=told):
        await ml.finetune(**fields)
    assert worker.asked == []


async def test_many_pairs_are_sent_in_chunks_before(worker: JobsWorker, ml: MLClient) -> None:
    many = [(f"anchor {number}", "é" * 40, ["no"]) for number in range(1000)]
    large = [("anchor", "x" * 700_000)]
    for pairs in (many, large):
        await ml.finetune(pairs=pairs, id="mine")
        _, sent = worker.asked[-1]
        assert set(sent) == {"id", "object"}
        lines = worker.uploaded[sent["object"]].decode().splitlines()
        read = [json.loads(line) for line in lines]
        assert [(pair["anchor"], pair["positive"]) for pair in read] == [pair[:2] for pair in pairs]
    assert worker.asked[0][1]["object"] != worker.asked[1][1]["object"]


@pytest.mark.parametrize("sizes", [[0], [1], [CHUNK_BYTES], [CHUNK_BYTES - 1, 2], [3 * CHUNK_BYTES], [1000] * 400])
def test_chunks_are_full_but_for_the_last(sizes: list[int]) -> None:
    pieces = [bytes([at % 256]) * size for at, size in enumerate(sizes)]
    chunks = list(in_chunks(pieces))
    assert b"".join(data for data, _ in chunks) == b"".join(pieces)
    assert [is_last for _, is_last in chunks] == [False] * (len(chunks) - 1) + [True]
    assert {len(data) for data, _ in chunks[:-1]} <= {CHUNK_BYTES}
    assert len(chunks) == max(1, -(-sum(sizes) // CHUNK_BYTES))


async def test_jobs_are_got_listed_and_cancelled(worker: JobsWorker, ml: MLClient) -> None:
    assert await ml.jobs.get("j1") == worker.job
    assert (await ml.jobs.list("queued", model="a", limit=3)).jobs == [worker.job]
    assert (await ml.jobs.list()).jobs == [worker.job]
    assert await ml.jobs.cancel("j1") == worker.job
    assert worker.asked == [
        (names.JOBS_GET, {"id": "j1"}),
        (names.JOBS_LIST, {"state": "queued", "model": "a", "limit": 3}),
        (names.JOBS_LIST, {}),
        (names.JOBS_CANCEL, {"id": "j1"}),
    ]
    worker.job = NotFound("there is no job 'j2'")
    with pytest.raises(NotFound):
        await ml.jobs.get("j2")
    with pytest.raises(InvalidField, match="field 'state'"):
        await ml.jobs.list("over")  # type: ignore[arg-type]


async def test_a_watch_gives_each_newer_state_once_until_the_end(worker: JobsWorker, ml: MLClient) -> None:
    states = [job("collecting", 1), job("training", 2, step=1), job("training", 3, step=2)]
    seen = []
    async with aclosing(ml.jobs.watch("j1")) as watched:
        async for one in watched:
            seen.append(one)
            if len(seen) == 1:
                await worker.publish(job("queued"), *states, states[-1])
                await worker.ping()
                await worker.publish(job("done", 4))
    assert seen == [job("queued"), *states, job("done", 4)]
    assert worker.asked == [(names.JOBS_WATCH, {"id": "j1"})]


async def test_a_job_that_is_over_ends_the_watch_at_once(worker: JobsWorker, ml: MLClient) -> None:
    worker.job = job("failed", reason="why")
    assert [one async for one in ml.jobs.watch("j1")] == [worker.job]


async def test_a_watch_goes_on_at_another_worker_where_one_leaves(worker: JobsWorker, ml: MLClient) -> None:
    seen = []
    async for one in ml.jobs.watch("j1"):
        seen.append(one.state)
        if len(seen) == 1:
            await worker.leave()
            worker.job = job("training", 1)
        else:
            await worker.publish(job("done", 2))
    assert seen == ["queued", "training", "done"]


async def test_a_watch_that_hears_nothing_asks_again(worker: JobsWorker, ml: MLClient) -> None:
    watched = ml.jobs.watch("j1", silence_s=0.1)
    assert (await anext(watched)).state == "queued"
    worker.job = job("done", 1)
    assert (await anext(watched)).state == "done"


async def test_leaving_a_watch_tells_the_worker(worker: JobsWorker, ml: MLClient, nc: Client) -> None:
    cancelled = await nc.subscribe("ml.cancel.*")
    async with aclosing(ml.jobs.watch("j1")) as watched:
        await anext(watched)
    await cancelled.next_msg(10)


async def test_a_watch_outlives_a_restart_and_workers_that_are_away(
    worker: JobsWorker, ml: MLClient, nats_server: NatsServer
) -> None:
    watched = ml.jobs.watch("j1", silence_s=0.2)
    assert (await anext(watched)).state == "queued"
    await worker.is_asked()
    next_state = asyncio.create_task(anext(watched))
    worker.job = Unavailable("starting")
    await worker.is_asked()
    await asyncio.to_thread(nats_server.restart)
    worker.job = job("training", 1)  # while nobody could hear of it
    assert (await asyncio.wait_for(next_state, 30)).state == "training"
    await watched.aclose()


async def test_a_watch_ends_with_its_client(worker: JobsWorker, ml: MLClient, nc: Client) -> None:
    """Not with the connection, which is another's."""
    waits, pauses = ml.jobs.watch("j1"), ml.jobs.watch("j1", silence_s=0.05)
    for watched in (waits, pauses):
        await anext(watched)
    ending = [asyncio.create_task(anext(watched)) for watched in (waits, pauses)]
    await worker.is_asked()
    await worker.is_asked()
    worker.job = Unavailable("starting")
    await worker.is_asked()
    await ml.close()
    for end in ending:
        with pytest.raises(Cancelled, match="this client was closed"):
            await asyncio.wait_for(end, 10)
    assert nc.is_connected


@pytest.mark.parametrize("error", [NotServed("not set up"), Forbidden("no"), Internal("odd")])
async def test_a_watch_that_waiting_does_not_help_ends(worker: JobsWorker, ml: MLClient, error: MLError) -> None:
    watched = ml.jobs.watch("j1", silence_s=0.1)
    await anext(watched)
    worker.job = error
    with pytest.raises(type(error), match=error.message):
        await asyncio.wait_for(anext(watched), 10)


def test_pauses_grow_up_to_a_bound_and_are_as_long_as_asked_for() -> None:
    pauses, busy = Pauses(0.2, 5.0), Busy("later")
    waited = [pauses.after(busy) for _ in range(20)]
    assert waited[0] < 0.31
    assert all(5.0 <= pause <= 7.5 for pause in waited[-10:])
    assert pauses.after(Busy("later", retry_after_ms=60_000)) >= 60
    pauses.restart()
    assert pauses.after(busy) < 0.31


async def test_a_watch_asks_again_no_sooner_than_it_is_told(
    worker: JobsWorker, ml: MLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[int | None] = []

    def after(self: Pauses, error: MLError) -> float:
        asked_for.append(error.retry_after_ms)
        return 0.0

    monkeypatch.setattr(Pauses, "after", after)
    watched = ml.jobs.watch("j1", silence_s=0.1)
    await anext(watched)
    await worker.is_asked()
    worker.job = Unavailable("starting", retry_after_ms=1234)
    ending = asyncio.create_task(anext(watched))
    await worker.is_asked()
    worker.job = job("done", 1)
    assert (await asyncio.wait_for(ending, 10)).state == "done"
    assert asked_for[:2] == [None, 1234]


async def test_a_watch_of_no_job_says_so(worker: JobsWorker, ml: MLClient) -> None:
    worker.job = NotFound("there is no job 'j1'")
    with pytest.raises(NotFound, match="no job 'j1'"):
        await anext(ml.jobs.watch("j1"))
    with pytest.raises(InvalidField, match="field 'id'"):
        await anext(ml.jobs.watch("*"))


async def test_a_watch_ends_with_its_connection(worker: JobsWorker, ml: MLClient, nc: Client) -> None:
    watched = ml.jobs.watch("j1")
    await anext(watched)
    waiting = asyncio.create_task(anext(watched))
    await asyncio.sleep(0)
    await nc.close()
    with pytest.raises(Unavailable, match="closed"):
        await asyncio.wait_for(waiting, 20)
