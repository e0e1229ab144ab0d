"""Who may only ask for trainings cannot have their outcome serve, however they ask."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import nats
import pytest
from fake_steps import Script
from nats.aio.client import Client
from nats_server import PASSWORDS, NatsServer
from serve_jobs import jobs_worker, listening, set_up
from workers import running_worker

from subjects import MLClient, names
from subjects.errors import Forbidden
from subjects.finetune import TrainingPair
from subjects.jobs import Job

INVENTED = [TrainingPair(anchor=f"question {i}", positive=f"an answer of mine {i}") for i in range(120)]


@pytest.fixture
async def client(secured_server: NatsServer) -> AsyncIterator[Client]:
    """An application, beside a worker."""
    worker = f"nats://worker:{PASSWORDS['worker']}@{secured_server.address}"
    async with (
        running_worker(worker),
        await nats.connect(
            secured_server.url, user="client", password=PASSWORDS["client"], inbox_prefix="_INBOX_client"
        ) as nc,
    ):
        yield nc


async def test_asking_for_the_swap_is_refused_with_the_way(client: Client) -> None:
    with pytest.raises(Forbidden, match=r"goes live by ml\.models\.promote, as admin: mlbus models promote"):
        await MLClient(client).finetune(pairs=INVENTED, swap=True)


async def test_promoting_is_the_administrators(secured_server: NatsServer) -> None:
    refused: list[str] = []

    async def on_error(error: Exception) -> None:
        refused.append(str(error))

    identity = {"user": "client", "password": PASSWORDS["client"], "inbox_prefix": "_INBOX_client"}
    async with await nats.connect(secured_server.url, error_cb=on_error, **identity) as nc:
        for subject in ("ml.models.promote", "ml.models.promote.some_worker"):
            await nc.publish(subject, b"a job")
        await nc.flush()
        await nc.flush()
    assert [text.rpartition(" ")[2].strip('"') for text in refused] == [
        "ml.models.promote",
        "ml.models.promote.some_worker",
    ]


async def test_invented_pairs_end_as_a_candidate(nats_url: str, tmp_path: Path) -> None:
    await set_up(nats_url)
    async with (
        listening(nats_url) as events,
        jobs_worker(nats_url, tmp_path / "data", Script(tmp_path / "script").write()) as worker,
    ):
        await worker.submit("one", pairs=INVENTED)
        job = await events.until_over("one")
        assert (job.state, worker.swap.live) == ("done", {})
        assert str(job.reason).startswith("kept as a candidate; promote with: mlbus models promote a ")
        assert "judged: by its own data only" in job.notes


async def test_who_guesses_a_nightly_job_s_id_does_not_say_what_it_learns(nats_url: str, tmp_path: Path) -> None:
    await set_up(nats_url)
    script = Script(tmp_path / "script").write()
    async with jobs_worker(nats_url, tmp_path / "data", script, takes_jobs=False) as worker:
        at = datetime.now(UTC)
        night = {"id": "nightly-1", "origin": "nightly", "promote": True, "model": "a", "source": "code"}
        await worker.store.create(Job(**night, state="queued", created_at=at, updated_at=at))
        await worker.submit("nightly-1", pairs=INVENTED)  # before its message has come through
        assert (await worker.nc.jetstream().stream_info(names.JOBS_STREAM)).state.messages == 0
