"""Workers that are killed without warning while they have a job: another one goes on where they were."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fake_steps import Script, holding
from serve_jobs import Events, jobs_process, jobs_worker

from subjects.names import JobState


@pytest.mark.parametrize(
    ("step", "state"),
    [("collect", "collecting"), ("train", "training"), ("verify", "verifying"), ("swap", "swapping")],
)
async def test_another_worker_goes_on_where_one_was_killed(
    nats_url: str, tmp_path: Path, script: Script, events: Events, step: str, state: JobState
) -> None:
    script.write(**{step: ["hold"]})
    data = tmp_path / "data"
    first = await jobs_process(nats_url, data, script, "w1")
    async with jobs_worker(nats_url, data, script, "client", takes_jobs=False) as client:
        held = await client.nc.subscribe("test.holding")
        await client.submit("one", promote=True)
        await (held.next_msg(20) if step == "swap" else events.until("one", note=holding(step)))
        first.kill()
        await first.wait()
    left = events.heard[-1]
    assert (left.state, left.worker) == (state, "w1")
    async with jobs_worker(nats_url, data, script, "w2") as second:
        job = await events.until_over("one")
        assert (job.state, job.worker, job.attempt) == ("done", "w2", 2)
        assert second.swap.live == {"a": job.version}
    again = {name: script.starts(name) for name in ("collect", "train", "verify", "swap")}
    assert again == {"collect": 1, "train": 1, "verify": 1, "swap": 1} | {step: 2}


async def test_step_ends_with_the_worker_that_was_killed(
    nats_url: str, tmp_path: Path, script: Script, events: Events
) -> None:
    script.write(train=["hold"])
    first = await jobs_process(nats_url, tmp_path / "data", script, "w1")
    async with jobs_worker(nats_url, tmp_path / "data", script, "client", takes_jobs=False) as client:
        await client.submit("one")
        await events.until("one", note=holding("train"))
    step = _child_of(first.pid)
    async with _gone(step):
        first.kill()
        await first.wait()


@pytest.mark.slow
async def test_job_that_kills_its_workers_is_ended_and_the_next_one_runs(
    nats_url: str, tmp_path: Path, script: Script, events: Events
) -> None:
    script.write(train=["hold", "hold", "hold"])
    data = tmp_path / "data"
    async with jobs_worker(nats_url, data, script, "client", takes_jobs=False) as client:
        await client.submit("bad")
        await client.submit("good")
        for number in range(3):
            process = await jobs_process(nats_url, data, script, f"w{number}")
            await events.until("bad", note=holding("train", number + 1))
            process.kill()
            await process.wait()
    async with jobs_worker(nats_url, data, script, "last"):
        bad = await events.until_over("bad")
        assert (bad.state, bad.attempt) == ("failed", 3)
        assert "begun 3 times" in str(bad.reason)
        assert (await events.until_over("good")).state == "done"


async def test_frozen_worker_that_comes_back_leaves_the_job_alone(
    nats_url: str, tmp_path: Path, script: Script, events: Events
) -> None:
    """On machines of their own: each has its data folder."""
    script.write(train=["hold"])
    first = await jobs_process(nats_url, tmp_path / "one" / "data", script, "w1")
    async with jobs_worker(nats_url, tmp_path / "two" / "data", script, "w2", takes_jobs=False) as client:
        await client.submit("one")
        await events.until("one", note=holding("train"))
    step = _child_of(first.pid)
    async with _gone(step):
        first.send_signal(signal.SIGSTOP)
        async with jobs_worker(nats_url, tmp_path / "two" / "data", script, "w2") as second:
            job = await events.until_over("one")
            await second.submit("two")  # is taken once the first has left the queue
            assert (await events.until_over("two")).state == "done"
        assert (job.state, job.worker) == ("done", "w2")
        first.send_signal(signal.SIGCONT)
    first.terminate()
    await first.wait()
    assert [heard for heard in events.heard if heard.id == "one"][-1] == job


@asynccontextmanager
async def _gone(pid: int) -> AsyncIterator[None]:
    """Leaving waits until a process that is not ours is gone."""
    descriptor, gone, loop = os.pidfd_open(pid), asyncio.Event(), asyncio.get_running_loop()
    try:
        yield
        loop.add_reader(descriptor, gone.set)
        async with asyncio.timeout(10):
            await gone.wait()
        loop.remove_reader(descriptor)
    finally:
        os.close(descriptor)


def _child_of(pid: int) -> int:
    """The one process that a worker has started."""
    [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)
