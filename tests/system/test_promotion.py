"""What passes is a candidate until the administrator has it promoted: while its job runs, or by its name."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nats
import pytest
from serve_jobs import Events, JobsWorker
from versioned_fleet import BASE_WEIGHTS, MODEL, Fleet

from models.weights.versions import BASE
from service.jobs import setup
from service.jobs.fleet.live import LiveVersion, LiveVersions
from service.jobs.store import JobStore
from subjects import MLClient
from subjects.errors import Conflict, InvalidField, NotFound
from subjects.finetune import FinetuneRequest, TrainingPair
from subjects.jobs import Job


class TestOfAJob:
    async def test_what_passes_is_sent_to_all_and_serves_nobody(self, worker: JobsWorker, events: Events) -> None:
        await worker.submit("one")
        job = await events.until_over("one")
        assert events.states("one") == ["queued", "collecting", "training", "verifying", "done"]
        assert job.reason == f"kept as a candidate; promote with: mlbus models promote a {job.version}"
        assert (worker.swap.live, worker.swap.offered) == ({}, [job.version])

    async def test_said_while_it_runs_it_is_done_at_its_end(self, worker: JobsWorker, events: Events) -> None:
        worker.room.gate.clear()
        await worker.submit("one")
        await events.until("one", "collecting")
        assert (await worker.store.request_promotion("one")).promote
        worker.room.gate.set()
        job = await events.until_over("one")
        assert (job.state, job.reason, worker.swap.live) == ("done", None, {"a": job.version})

    async def test_said_at_the_last_moment_it_is_not_lost(self, worker: JobsWorker, events: Events) -> None:
        worker.swap.while_offered = lambda: worker.store.request_promotion("one")
        await worker.submit("one")
        job = await events.until_over("one")
        assert (job.state, job.reason, worker.swap.live) == ("done", None, {"a": job.version})
        assert (job.attempt, worker.script.starts("verify")) == (1, 1)

    async def test_what_only_its_own_pairs_have_judged_takes_another_word(
        self, worker: JobsWorker, events: Events
    ) -> None:
        pairs = [TrainingPair(anchor=f"what is {i}", positive=f"this is the number {i}") for i in range(40)]
        await worker.submit("one", pairs=pairs, promote=True)
        job = await events.until_over("one")
        kept = "kept as a candidate that was judged by its own data only"
        assert job.reason == f"{kept}; promote with: mlbus models promote a {job.version}"
        assert "judged: by its own data only" in job.notes
        assert (job.state, worker.swap.live, worker.swap.offered) == ("done", {}, [job.version])

    async def test_a_job_that_is_rejected_promotes_nothing(self, worker: JobsWorker, events: Events) -> None:
        worker.script.write(verify=["reject"])
        await worker.submit("one", promote=True)
        assert (await events.until_over("one")).state == "rejected"
        assert (worker.swap.live, worker.swap.offered) == ({}, [])

    @pytest.mark.parametrize("promotes", [True, False])
    async def test_the_nightly_run_promotes_by_the_settings(
        self, worker: JobsWorker, events: Events, promotes: bool
    ) -> None:
        finetune = worker.settings.finetune
        nightly = finetune.nightly.model_copy(update={"promote": promotes})
        settings = worker.settings.model_copy(update={"finetune": finetune.model_copy(update={"nightly": nightly})})
        request = FinetuneRequest(id="one", model="a", path=str(finetune.roots[0]))
        submitted = await replace(worker.submission, settings=settings).submit(request, "nightly")
        job = await events.until_over(submitted.job)
        assert (job.promote, worker.swap.live) == (promotes, {"a": job.version} if promotes else {})

    async def test_what_others_train_on_the_same_code_keeps_no_night_from_it(
        self, worker: JobsWorker, events: Events
    ) -> None:
        worker.script.write(verify=["reject"])
        await worker.submit("spoilt")
        assert (await events.until_over("spoilt")).state == "rejected"
        await worker.submit("candidate")
        assert (await events.until_over("candidate")).state == "done"
        request = FinetuneRequest(id="night", model="a", path=str(worker.settings.finetune.roots[0]))
        submitted = await worker.submission.submit(request, "nightly")
        assert (await events.until_over(submitted.job)).state == "done"


class TestOfAVersion:
    @pytest.fixture
    async def fleet(self, nats_url: str, tmp_path: Path) -> AsyncIterator[Fleet]:
        """Two workers that serve `base`; the first one trains."""
        async with await nats.connect(nats_url) as nc:
            await setup.create(nc)
        fleet = Fleet(nats_url, tmp_path)
        async with AsyncExitStack() as stack:
            for name in ("one", "two"):
                await stack.enter_async_context(fleet.joined(name))
            yield fleet

    @pytest.fixture
    async def ml(self, nats_url: str) -> AsyncIterator[MLClient]:
        async with await MLClient.connect(nats_url, timeout_s=60) as client:
            yield client

    async def test_whichever_worker_answers_all_serve_it(self, fleet: Fleet, ml: MLClient) -> None:
        trainer = fleet.members[0]
        version = trainer.make("better")
        assert await trainer.rollout.offer(MODEL, version) == []
        for _ in range(4):  # said again, by either of them, it stays so
            reply = await ml.models.promote(MODEL, version)
            assert (reply.model, reply.version, reply.live, reply.notes) == (MODEL, version, True, [])
            assert {member.serves for member in fleet.members} == {version[-12:]}

    async def test_what_it_does_not_keep_is_undone(self, fleet: Fleet, ml: MLClient) -> None:
        trainer = fleet.members[0]
        version = trainer.make("not what it promised", vectors_of="something else")
        await trainer.rollout.offer(MODEL, version)
        with pytest.raises(Conflict, match="was rolled back: vectors came back with a cosine of"):
            await ml.models.promote(MODEL, version)
        assert {member.serves for member in fleet.members} == {BASE_WEIGHTS[:12]}

    async def test_what_did_not_pass_is_refused(self, fleet: Fleet, ml: MLClient) -> None:
        trainer = fleet.members[0]
        version = trainer.make("worse", accepted=False, reasons=["it is worse"])
        await trainer.rollout.offer(MODEL, version)
        with pytest.raises(Conflict, match="has not proved itself: it is worse"):
            await ml.models.promote(MODEL, version)
        with pytest.raises(InvalidField, match=r"ml\.models\.reload goes back to it"):
            await ml.models.promote(MODEL, BASE)
        with pytest.raises(NotFound, match="has no version 'nowhere'"):
            await ml.models.promote(MODEL, "nowhere")
        with pytest.raises(NotFound, match="there is no job 'nobody'"):
            await ml.models.promote(job="nobody")
        for named in ({}, {"model": MODEL}, {"version": version}, {"model": MODEL, "version": version, "job": "x"}):
            with pytest.raises(InvalidField, match="give 'model' and 'version', or 'job' alone"):
                await ml.models.promote(**named)
        assert {member.serves for member in fleet.members} == {BASE_WEIGHTS[:12]}

    async def test_two_at_once_go_live_one_after_the_other(self, fleet: Fleet, ml: MLClient, nats_url: str) -> None:
        made = [member.make(f"better {day}", day=day) for day, member in enumerate(fleet.members)]
        for member, version in zip(fleet.members, made, strict=True):
            await member.rollout.offer(MODEL, version)
        replies = await asyncio.gather(*(ml.models.promote(MODEL, version) for version in made))
        assert [(reply.version, reply.live, reply.notes) for reply in replies] == [(name, True, []) for name in made]
        async with await nats.connect(nats_url) as nc:
            live = await LiveVersions(nc).get(MODEL)
        assert live is not None
        assert live.previous is not None
        assert live.earlier == LiveVersion(version=BASE)
        assert {live.version, live.previous.version} == set(made)
        assert {member.serves for member in fleet.members} == {live.version[-12:]}

    async def test_who_gives_up_has_undone_it(self, fleet: Fleet, ml: MLClient, nats_url: str) -> None:
        trainer, slow = fleet.members
        version = trainer.make("better")
        await trainer.rollout.offer(MODEL, version)
        for member in fleet.members:
            member.loader.entered.clear()
            member.loader.gate.clear()
        asking = asyncio.create_task(ml.models.promote(MODEL, version))
        await asyncio.to_thread(slow.loader.entered.wait, 30)
        async with await nats.connect(nats_url) as nc, asyncio.timeout(30), aclosing(LiveVersions(nc).watch()) as told:
            assert (await anext(told))[1].version == version
            asking.cancel()
            while (await anext(told))[1].version != BASE:
                pass
        for member in fleet.members:
            member.loader.gate.set()
        await fleet.until_all_serve(BASE_WEIGHTS[:12])

    async def test_a_job_that_is_over(self, fleet: Fleet, ml: MLClient, nats_url: str) -> None:
        version = fleet.members[0].make("better")
        await fleet.members[0].rollout.offer(MODEL, version)
        async with await nats.connect(nats_url) as nc:
            for job_id, state in (("passed", "done"), ("spoilt", "rejected"), ("waits", "queued")):
                at = {"created_at": datetime.now(UTC), "updated_at": datetime.now(UTC)}
                job = Job(id=job_id, model=MODEL, source="code", state=state, version=version, reason="why", **at)
                await JobStore(nc).create(job)
        with pytest.raises(Conflict, match="job 'spoilt' is rejected, so there is nothing to promote: why"):
            await ml.models.promote(job="spoilt")
        waits = await ml.models.promote(job="waits")
        assert (waits.live, (await ml.jobs.get("waits")).promote) == (False, True)
        reply = await ml.models.promote(job="passed")
        assert (reply.job, reply.version, reply.live) == ("passed", version, True)
        assert {member.serves for member in fleet.members} == {version[-12:]}
