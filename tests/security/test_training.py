"""Who may only ask for trainings cannot have their outcome serve, however they ask."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from fake_steps import Script
from nats_server import PASSWORDS, NatsServer
from serve_jobs import jobs_worker, listening, set_up
from workers import running_worker

from service.bus.causes import Denied
from service.bus.connection import connected, settled
from service.bus.settings import NatsSettings
from subjects import MLClient, names
from subjects.errors import Forbidden
from subjects.finetune import TrainingPair
from subjects.jobs import Job

INVENTED = [TrainingPair(anchor=f"question {i}", positive=f"an answer of mine {i}") for i in range(120)]


def an_application(server: NatsServer) -> NatsSettings:
    return NatsSettings.of_user({}, "client", PASSWORDS["client"], server.url)


async def test_asking_for_the_swap_is_refused_with_the_way(secured_server: NatsServer) -> None:
    async with (
        running_worker(f"nats://worker:{PASSWORDS['worker']}@{secured_server.address}"),
        connected(an_application(secured_server)) as nc,
    ):
        with pytest.raises(Forbidden, match=r"goes live by ml\.models\.promote, as admin: mlbus models promote"):
            await MLClient(nc).finetune(pairs=INVENTED, swap=True)


async def test_promoting_is_the_administrators(secured_server: NatsServer) -> None:
    refused: list[Denied] = []
    subjects = ["ml.models.promote", "ml.models.promote.some_worker"]
    async with connected(an_application(secured_server), on_denied=refused.append) as nc:
        for subject in subjects:
            await nc.publish(subject, b"a job")
        await settled(nc)
    assert refused == [Denied("publish", subject) for subject in subjects]


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
