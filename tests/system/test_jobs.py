"""Jobs over a real nats-server, with scripted steps: submitted, done, cancelled, failed, begun again."""

import asyncio
import json
import resource
from pathlib import Path

import pytest
from fake_steps import Script, holding
from nats.errors import Error as NatsError
from nats_server import NatsServer
from serve_jobs import Events, JobsWorker, answering, asked, jobs_worker, listening, set_up

from models.errors import OverBudget
from service.bus.client import BusClient
from service.bus.jetstream import JetStream, NotStored
from service.cli import doctor
from service.errors import to_wire
from service.jobs.retry import retry_while_down
from service.jobs.store import JobStore
from subjects import names
from subjects.errors import Busy, NotServed, Unavailable
from subjects.finetune import FinetuneOptions, FinetuneRequest, TrainingPair


async def test_job_goes_through_all_states_and_its_version_is_served(worker: JobsWorker, events: Events) -> None:
    await worker.submit("one", promote=True)
    job = await events.until_over("one")
    assert events.states("one") == ["queued", "collecting", "training", "verifying", "swapping", "done"]
    assert job.state == "done"
    assert worker.swap.live == {"a": job.version}
    assert (job.parent, job.attempt, job.worker, job.step, job.steps) == ("base", 1, "w1", 2, 2)
    assert job.metrics == {"mrr": 0.7}
    assert (worker.settings.checkpoints_dir / "a" / str(job.version) / "report" / "report.json").is_file()
    assert worker.room.taken == [
        ("finetune.a", "cpu", 10**9 * gb) for gb in (3, 3, 2)
    ]  # for negatives, training; measured
    assert job.notes == ["expected to take 0:01:30 and 2.0 GB of memory"]
    await worker.submit("two", "b")  # the next one is taken once the first is settled
    await events.until_over("two")
    assert not worker.run_folder("one").exists()


async def test_same_id_again_is_the_same_job(worker: JobsWorker, events: Events) -> None:
    request = FinetuneRequest(id="one", model="a", path=str(worker.settings.finetune.roots[0]))
    assert not (await worker.submission.submit(request)).duplicate
    assert (await worker.submission.submit(request)).duplicate
    await events.until_over("one")
    assert (await worker.submission.submit(request)).duplicate
    assert worker.script.starts("train") == 1


async def test_waiting_job_is_published_again_and_done_once(
    nats_url: str, tmp_path: Path, script: Script, events: Events
) -> None:
    async with jobs_worker(nats_url, tmp_path / "data", script, takes_jobs=False) as client:
        await client.submit("one")
        await client.submit("one")
        assert (await client.nc.jetstream().stream_info(names.JOBS_STREAM)).state.messages == 1


async def test_jobs_for_one_model_run_one_after_the_other(worker: JobsWorker, events: Events) -> None:
    await worker.submit("one")
    await worker.submit("two")
    await events.until_over("two")
    order = [(job.id, job.state) for job in events.heard]
    assert order.index(("one", "done")) < order.index(("two", "collecting"))


async def test_step_that_says_why_fails_the_job_at_once(worker: JobsWorker, events: Events) -> None:
    worker.script.write(train=["fail"])
    await worker.submit("one")
    job = await events.until_over("one")
    assert (job.state, job.reason, job.attempt) == ("failed", "train cannot be done", 1)


async def test_poison_ends_after_three_attempts_and_the_next_job_runs(worker: JobsWorker, events: Events) -> None:
    worker.script.write(train=["crash", "die", "crash"])
    await worker.submit("bad")
    await worker.submit("good")
    bad = await events.until_over("bad")
    assert (bad.state, bad.attempt) == ("failed", 3)
    assert "RuntimeError: a bug" in str(bad.reason)
    waiting = [job.reason for job in events.heard if job.id == "bad" and job.state == "queued" and job.reason]
    assert len(waiting) == 2
    assert "killed" in str(waiting[1])
    assert (await events.until_over("good")).state == "done"


async def test_step_may_write_what_it_likes(worker: JobsWorker, events: Events) -> None:
    worker.script.write(collect=["noise"], train=["noise"])
    await worker.submit("one")
    assert (await events.until_over("one")).state == "done"


async def test_rejected_candidate_is_kept_and_not_served(worker: JobsWorker, events: Events) -> None:
    worker.script.write(verify=["reject"])
    await worker.submit("one")
    job = await events.until_over("one")
    assert (job.state, job.reason) == ("rejected", "held-out NDCG@10 is down")
    assert worker.swap.live == {}
    assert (worker.settings.checkpoints_dir / "a" / str(job.version)).is_dir()


async def test_rollback_is_a_rejection(worker: JobsWorker, events: Events) -> None:
    worker.script.write(swap=["roll back"])
    await worker.submit("one", promote=True)
    job = await events.until_over("one")
    assert job.state == "rejected"
    assert job.reason == f"version {job.version} was rolled back: a live round did not match"


async def test_job_waits_for_memory_and_says_so(worker: JobsWorker, events: Events) -> None:
    worker.room.gate.clear()
    code = str(worker.settings.finetune.roots[0])
    await worker.submit("one", path=code, options=FinetuneOptions(hard_negatives=0))
    waiting = await events.until("one", "training")
    assert waiting.reason == "waits for memory"
    worker.room.gate.set()
    assert (await events.until_over("one")).reason != waiting.reason


async def test_job_over_the_budget_fails_with_the_sizes(worker: JobsWorker, events: Events) -> None:
    worker.room.failure = OverBudget("finetune.a", 3 * 10**9, 2 * 10**9, 2 * 10**9)
    await worker.submit("one")
    job = await events.until_over("one")
    assert job.state == "failed"
    assert "3.00 GB" in str(job.reason)


async def test_an_estimate_over_the_budget_is_no_reason_to_fail(worker: JobsWorker, events: Events) -> None:
    worker.room.failure = OverBudget("finetune.a", 3 * 10**9, 25 * 10**8, 10**9)
    await worker.submit("one")
    assert (await events.until_over("one")).state == "done"
    assert worker.room.taken == [("finetune.a", "cpu", size) for size in (15 * 10**8, 15 * 10**8, 2 * 10**9)]


async def test_unforeseen_error_is_a_crashed_attempt(worker: JobsWorker, events: Events) -> None:
    worker.room.failure = ZeroDivisionError()
    await worker.submit("one")
    job = await events.until_over("one")
    assert (job.state, job.attempt) == ("failed", 3)
    assert "ZeroDivisionError" in str(job.reason)


@pytest.mark.parametrize("step", ["collect", "train", "verify"])
async def test_cancel_ends_a_step(worker: JobsWorker, events: Events, step: str) -> None:
    worker.script.write(**{step: ["hold"]})
    await worker.submit("one")
    await events.until("one", note=holding(step))
    await worker.store.request_cancel("one")
    job = await events.until_over("one")
    assert (job.state, job.reason) == ("cancelled", "cancelled on request")
    assert worker.swap.live == {}
    await worker.submit("two")
    assert (await events.until_over("two")).state == "done"
    assert not worker.run_folder("one").exists()


async def test_cancel_ends_a_swap(worker: JobsWorker, events: Events) -> None:
    worker.script.write(swap=["hold"])
    held = await worker.nc.subscribe("test.holding")
    await worker.submit("one", promote=True)
    await held.next_msg(20)
    await worker.store.request_cancel("one")
    assert (await events.until_over("one")).state == "cancelled"
    assert worker.swap.live == {}


async def test_cancelled_job_that_waits_never_begins(worker: JobsWorker, events: Events) -> None:
    worker.script.write(collect=["hold"])
    await worker.submit("one")
    await worker.submit("two")
    await events.until("one", note=holding("collect"))
    assert (await worker.store.request_cancel("two")).state == "cancelled"
    await worker.store.request_cancel("one")
    await worker.submit("three")
    assert (await events.until_over("three")).state == "done"
    assert events.states("two") == ["queued", "cancelled"]
    assert (await worker.store.request_cancel("two")).state == "cancelled"


async def test_garbage_and_unknown_jobs_leave_the_queue(worker: JobsWorker, events: Events) -> None:
    js = worker.nc.jetstream()
    for body in (b"\xff\x00", b"{}", b'{"id":"nobody","path":"/x"}', b'{"path":"/x"}'):
        await js.publish(names.job_queue_subject("nobody"), body)
    await worker.submit("one")
    assert (await events.until_over("one")).state == "done"


async def test_graceful_end_hands_back_without_counting(
    nats_url: str, tmp_path: Path, script: Script, events: Events
) -> None:
    script.write(train=["hold"])
    async with jobs_worker(nats_url, tmp_path / "data", script) as first:
        await first.submit("one")
        await events.until("one", note=holding("train"))
        events.heard.clear()  # it was queued before too
    stopped = await events.until("one", "queued")
    assert stopped.attempt == 0
    async with jobs_worker(nats_url, tmp_path / "data", script, "w2"):
        job = await events.until_over("one")
    assert (job.state, job.attempt, job.worker) == ("done", 1, "w2")
    assert script.starts("collect") == 1  # what was there is not done again


async def test_pairs_of_the_request_reach_the_run(worker: JobsWorker, events: Events) -> None:
    worker.script.write(collect=["hold"])
    pairs = [{"anchor": f"é\n{number}", "positive": f"b {number}", "negatives": ["c"]} for number in range(40)]
    await worker.submit("one", pairs=[TrainingPair(**pair) for pair in pairs])
    await events.until("one", note=holding("collect"))
    lines = (worker.run_folder("one") / "given.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == pairs
    await worker.store.request_cancel("one")


async def test_object_is_streamed_into_the_run(worker: JobsWorker, events: Events) -> None:
    content = b'{"anchor":"a","positive":"b"}\n' * 20_000
    objects = await worker.nc.jetstream().object_store(names.DATA_BUCKET)
    await objects.put("mine", content)
    worker.script.write(collect=["hold"])
    await worker.submit("one", object="mine")
    await events.until("one", note=holding("collect"))
    assert (worker.run_folder("one") / "given.jsonl").read_bytes() == content
    await worker.store.request_cancel("one")


async def test_nightly_job_is_skipped_where_the_code_did_not_change(worker: JobsWorker, events: Events) -> None:
    request = FinetuneRequest(path=str(worker.settings.finetune.roots[0]))
    first = await worker.submission.submit(request.model_copy(update={"id": "one"}), "nightly")
    assert (await events.until_over(first.job)).state == "done"
    second = await worker.submission.submit(request.model_copy(update={"id": "two"}), "nightly")
    job = await events.until_over(second.job)
    assert (job.state, job.origin) == ("skipped", "nightly")
    assert "did not change" in str(job.reason)
    await worker.submission.submit(request.model_copy(update={"id": "three"}))
    assert (await events.until_over("three")).state == "done"


async def test_worker_that_lost_its_job_touches_nothing(worker: JobsWorker, events: Events) -> None:
    worker.script.write(train=["hold"])
    await worker.submit("one")
    await events.until("one", note=holding("train"))
    await worker.store.change("one", worker="other", attempt=2)
    await worker.submit("two")
    other = await worker.store.get("one")
    assert other is not None
    await worker.store.change("one", state="failed", reason="theirs")
    assert (await events.until_over("two")).state == "done"  # the message of the first came again, and was over
    first = await worker.store.get("one")
    assert first is not None
    assert (first.worker, first.state, first.reason) == ("other", "failed", "theirs")


# What is refused

PAIRS = [{"anchor": f"ask {number}", "positive": f"say {number}"} for number in range(40)]


async def _refusal(worker: JobsWorker, **fields: object) -> Exception:
    with pytest.raises(Exception) as refused:  # noqa: PT011
        await worker.submission.submit(FinetuneRequest.model_validate({"path": "code", **fields}))
    assert await worker.store.list() == []
    return refused.value


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"model": "nothing"}, 404, "known: "),
        ({"model": "tiny_coder"}, 422, "generates text"),
        ({"model": "onnx_only"}, 422, "no torch weights"),
        ({"model": "absent"}, 503, "correct `folder`"),
        ({"path": "/"}, 422, "finetune.roots ("),
        ({"path": "{code}/../code/.."}, 422, "finetune.roots ("),
        ({"path": "{code}/nowhere"}, 422, "no such folder"),
        ({"path": "{code}/file"}, 422, "no folder"),
        ({"path": "{code}/loop"}, 422, "leads nowhere"),
        ({"path": "{code}/out"}, 422, "finetune.roots ("),
        ({"path": "a\0b"}, 422, "leads nowhere"),
        ({"path": "x" * 4096}, 422, "not below"),
        ({"path": None, "object": "nothing"}, 404, "nats object put ml_data"),
        ({"path": None, "object": "empty"}, 422, "is empty"),
        (
            {"path": None, "pairs": [{"anchor": f"a{n}", "positive": "b" * 70_000} for n in range(17)]},
            413,
            "ml.finetune.upload",
        ),
        ({"options": {"loss": "triplet", "hard_negatives": 0}}, 422, "'options.hard_negatives' above 0"),
        (
            {"path": None, "pairs": PAIRS, "options": {"loss": "triplet"}},
            422,
            "'options.loss': triplet needs negatives",
        ),
        ({"path": None, "pairs": [{"anchor": "a", "positive": "b"}]}, 422, "1 pair was given; 16 to train on and 1 to"),
        ({"path": None, "pairs": [{"anchor": "a", "positive": "b"}] * 50}, 422, "1 pair was given"),
        (
            {"path": None, "pairs": [{"anchor": "a", "positive": f"b{n}"} for n in range(16)]},
            422,
            "16 pairs were given",
        ),
        ({"path": None, "pairs": [{"anchor": "a", "positive": f"b{n}"} for n in range(99)]}, 422, "0 held out"),
    ],
)
async def test_bad_request_is_refused_before_anything_is_queued(
    worker: JobsWorker, fields: dict[str, object], code: int, words: str
) -> None:
    folder = worker.settings.finetune.roots[0]
    (folder / "file").touch()
    (folder / "loop").symlink_to("loop")
    (folder / "out").symlink_to("/")
    await (await worker.nc.jetstream().object_store(names.DATA_BUCKET)).put("empty", b"")
    if isinstance(path := fields.get("path"), str):
        fields = {**fields, "path": path.replace("{code}", str(folder))}
    error = to_wire(await _refusal(worker, **{"path": str(folder), **fields}))
    assert error is not None
    assert (error.code, words in error.message) == (code, True), error.message


async def test_full_queue_is_refused_and_leaves_no_job(nats_url: str, tmp_path: Path, script: Script) -> None:
    await set_up(nats_url, jobs=1)
    async with jobs_worker(nats_url, tmp_path / "data", script, takes_jobs=False) as client:
        await client.submit("one")
        with pytest.raises(Busy):
            await client.submit("two")
        assert [job.id for job in await client.store.list()] == ["one"]


async def test_a_server_that_takes_no_writes_is_told_from_one_that_is_away(
    nats_server: NatsServer, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may write into one file stands for the space on its disk; after a write that failed it takes none."""
    monkeypatch.setattr(BusClient, "jetstream", lambda nc, **_: JetStream(nc, timeout=0.5))
    await set_up(nats_server.url)
    enough = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, enough[1]))
    try:
        nats_server.restart()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, enough)
    async with jobs_worker(nats_server.url, tmp_path / "data", script, takes_jobs=False) as client:
        pairs = [TrainingPair(anchor=f"a {number}", positive=f"b {number}" * 1000) for number in range(40)]
        with pytest.raises(Unavailable, match=r"did not confirm job 'large' \(it takes no writes: where its disk was"):
            await client.submit("large", pairs=pairs)
        with pytest.raises(NotStored):
            await client.nc.jetstream().publish(f"$KV.{names.JOBS_BUCKET}.large", bytes(2**16))
        async with answering(client) as nc:
            answer = await asked(nc, names.FINETUNE, str(client.settings.finetune.roots[0]))
        assert "takes no writes: where its disk was full, free some and restart nats" in answer["error"]["message"]
        found = await doctor.check_nats(client.settings, 10)
        assert next(finding.status for finding in found if finding.check == "JetStream") == "fail"
        nats_server.restart()
        await retry_while_down(lambda: client.submit("small"))
        found = await doctor.check_nats(client.settings, 10)
        assert next(finding.status for finding in found if finding.check == "JetStream") == "ok"


async def test_server_without_the_streams_says_what_to_do(nats_url: str, tmp_path: Path, script: Script) -> None:
    async with jobs_worker(nats_url, tmp_path / "data", script) as worker:
        with pytest.raises(NotServed, match="mlbus admin init"):
            await worker.submit("one")
        async with listening(nats_url) as events:
            await set_up(nats_url)  # no restart of the worker is needed
            await worker.submit("one")
            assert (await events.until_over("one")).state == "done"


# Over the bus


async def test_what_nats_fails_at_within_the_work_is_answered(
    worker: JobsWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a reply that cannot be published is lost."""

    async def fail(store: JobStore, job_id: str) -> None:
        raise NatsError("nats: what nobody foresaw")

    monkeypatch.setattr(JobStore, "get", fail)
    async with answering(worker) as nc:
        assert (await asked(nc, names.JOBS_GET, "one"))["error"]["code"] == 500


async def test_jobs_are_asked_for_in_plain_text(worker: JobsWorker, events: Events) -> None:
    async with answering(worker) as nc:
        worker.script.write(train=["hold"])
        reply = await asked(nc, names.FINETUNE, str(worker.settings.finetune.roots[0]))
        assert reply["duplicate"] is False
        await events.until(reply["job"], note=holding("train"))
        assert reply["id"] == reply["job"]
        found = await asked(nc, names.JOBS_GET, reply["job"])
        assert (found["state"], found["model"]) == ("training", "a")
        for name in ("id", "job"):
            assert (await asked(nc, names.JOBS_GET, json.dumps({name: reply["job"]})))[name] == reply["job"]
        assert await asked(nc, names.JOBS_LIST, "training") == await asked(nc, names.JOBS_LIST, "")
        assert (await asked(nc, names.JOBS_CANCEL, reply["job"]))["cancel_requested"]
        await events.until_over(reply["job"])
        listed = await asked(nc, names.JOBS_LIST, '{"state":"cancelled","model":"a","limit":1}')
        assert [job["id"] for job in listed["jobs"]] == [reply["job"]]
        assert (await asked(nc, names.JOBS_GET, "nobody"))["error"]["code"] == 404
        assert (await asked(nc, names.JOBS_CANCEL, "nobody"))["error"]["code"] == 404
        assert (await asked(nc, names.JOBS_GET, "no.body"))["error"]["code"] == 422
        assert (await asked(nc, names.FINETUNE, "{}"))["error"]["code"] == 422


async def test_without_jetstream_all_of_it_says_what_to_do(tmp_path: Path, script: Script) -> None:
    server = NatsServer(tmp_path / "nats").start()
    try:
        async with jobs_worker(server.url, tmp_path / "data", script) as worker, answering(worker) as nc:
            chunk = json.dumps({"upload": "u" * 32, "data": "YQ==", "sha256": "0" * 64})
            bodies = {names.JOBS_LIST: "", names.FINETUNE_UPLOAD: chunk}
            subjects = (names.FINETUNE, names.JOBS_GET, names.JOBS_WATCH, names.JOBS_CANCEL)
            for subject, body in {**dict.fromkeys(subjects, "code"), **bodies}.items():
                error = (await asked(nc, subject, body))["error"]
                assert (error["code"], error["retryable"]) == (503, False)
                assert "mlbus admin init" in error["message"]
    finally:
        server.stop()


async def test_a_forgotten_id_is_a_new_job(worker: JobsWorker, events: Events) -> None:
    await worker.submit("one")
    await events.until_over("one")
    await worker.store.remove("one")
    events.heard.clear()
    await worker.submit("one")
    await events.until_over("one")
    assert worker.script.starts("train") == 2


async def test_many_who_submit_the_same_at_once_make_one_job(worker: JobsWorker, events: Events) -> None:
    request = FinetuneRequest(id="night", model="a", path=str(worker.settings.finetune.roots[0]))
    replies = await asyncio.gather(*(worker.submission.submit(request) for _ in range(8)))
    assert [reply.duplicate for reply in replies].count(False) == 1
    assert (await events.until_over("night")).state == "done"
    assert worker.script.starts("train") == 1


# While the server is away


@pytest.mark.parametrize("step", ["collect", "train", "verify"])
@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_server_may_go_and_come_at_any_stage(
    nats_server: NatsServer, tmp_path: Path, script: Script, events: Events, step: str, how: str
) -> None:
    script.write(**{step: ["hold"]})
    async with jobs_worker(nats_server.url, tmp_path / "data", script) as worker:
        await worker.submit("one")
        await events.until("one", note=holding(step))
        await asyncio.to_thread(nats_server.stop if how == "restart" else nats_server.kill)
        await asyncio.to_thread(nats_server.start)
        async with listening(nats_server.url) as after:
            await _cancel(worker)
            assert (await after.until_over("one")).state == "cancelled"
            await worker.submit("two")
            assert (await after.until_over("two")).state == "done"


async def _cancel(worker: JobsWorker) -> None:
    await retry_while_down(lambda: worker.store.request_cancel("one"))
