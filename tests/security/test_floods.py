"""Floods of questions that cost no model, and what discovery tells whoever asks."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fake_encoder import FakeEncoder
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats_server import NatsServer, as_role
from workers import running_worker

from service.bus.connection import settled
from service.bus.credentials import WORKERS_INBOX
from service.endpoint import micro
from service.jobs import store
from service.residency import overview
from subjects import MLClient, names

QUESTIONS = 1000
VERBS = ("PING", "INFO", "STATS")


async def asked(nc: Client, subject: str) -> Any:
    return json.loads((await nc.request(subject, b"", timeout=20)).data)


async def worker_id(nc: Client) -> str:
    """Of the one that is there; asked again where a flood before this has had the question dropped."""
    while True:
        with suppress(TimeoutError):
            answer = await nc.request("$SRV.PING.ml", b"", timeout=1)
            return str(json.loads(answer.data)["id"])


async def flooded(nc: Client, subject: str, below: str = "") -> Subscription:
    """Questions as fast as they can be put -> where the answers come. `worker` stands for the worker's id."""
    worker = await worker_id(nc)
    inbox = f"{below}.flood" if below else nc.new_inbox()
    heard = await nc.subscribe(inbox)
    for _ in range(QUESTIONS):
        await nc.publish(subject.replace("worker", worker), reply=inbox)
    await settled(nc)
    return heard


@pytest.mark.parametrize("verb", VERBS)
async def test_of_a_flood_to_all_workers_little_is_answered(anyone: Client, verb: str) -> None:
    for subject in (f"$SRV.{verb}", f"$SRV.{verb}.ml"):
        heard = await flooded(anyone, subject)
        await anyone.request(names.EMBED, b"served beside it", timeout=20)
        assert heard.pending_msgs <= QUESTIONS / 2


async def test_answers_are_given_from_what_is_kept(anyone: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    described, made = overview.described, []

    def counted(*what: Any) -> dict[str, str]:
        made.append(what)
        return described(*what)

    monkeypatch.setattr(overview, "described", counted)
    monkeypatch.setattr(micro, "FRESH_S", 3600)
    heard = await flooded(anyone, "$SRV.PING.ml.worker")
    await anyone.request(names.EMBED, b"served beside it", timeout=20)
    assert heard.pending_msgs > 10
    assert len(made) <= 1


async def test_only_the_worker_itself_is_always_answered(
    secured_server: NatsServer, admin: Client, tmp_path: Path
) -> None:
    """A reply subject below that of workers is anybody's to write; that of its watch nobody knows."""
    questions = await admin.subscribe("$SRV.PING.ml.*")
    async with running_worker(as_role(secured_server, "worker"), FakeEncoder(), data_dir=tmp_path / "data"):
        own = await questions.next_msg(20)
        watch = await admin.subscribe(own.reply)
        for subject in (own.subject, "$SRV.PING.ml"):
            heard = await flooded(admin, subject, WORKERS_INBOX)
            for _ in range(10):
                await admin.publish(own.subject, reply=own.reply)
            for _ in range(10):
                await watch.next_msg(20)
            await admin.request(names.EMBED, b"served beside it", timeout=20)
            assert heard.pending_msgs <= QUESTIONS / 2


@pytest.mark.parametrize("verb", VERBS)
async def test_who_asks_one_worker_is_answered_beside_a_flood_to_all(anyone: Client, verb: str) -> None:
    await flooded(anyone, f"$SRV.{verb}.ml")
    worker = await worker_id(anyone)
    assert (await asked(anyone, f"$SRV.{verb}.ml.{worker}"))["id"] == worker
    heard = await flooded(anyone, f"$SRV.{verb}.ml.worker")
    await anyone.request(names.EMBED, b"served beside it", timeout=20)
    assert heard.pending_msgs <= QUESTIONS / 2


async def test_of_a_flood_of_questions_for_schemas_most_are_refused(anyone: Client) -> None:
    replies = await asyncio.gather(*(anyone.request(names.SCHEMA, b"", timeout=20) for _ in range(200)))
    codes = [(reply.headers or {}).get(names.ERROR_CODE) for reply in replies]
    assert set(codes) == {None, "429"}


async def test_pings_of_workers_are_answered_beside_a_flood(anyone: Client, admin: Client) -> None:
    inbox = f"{WORKERS_INBOX}.one"
    answers = await admin.subscribe(inbox)
    for verb in VERBS:
        await flooded(anyone, f"$SRV.{verb}.ml")
        await admin.publish("$SRV.PING.ml", reply=inbox)
        assert (await answers.next_msg(10)).data


async def test_info_is_small_with_all_bundled_models(anyone: Client) -> None:
    info = await anyone.request("$SRV.INFO.ml", b"", timeout=20)
    assert json.loads(info.data)["metadata"]["models"].count(",") == 2
    assert len(info.data) < 4096


SECRET = "hunter2"
TELLTALES: list[tuple[str, dict[str, Any]]] = [
    (names.EMBED, {SECRET: 1}),
    (names.EMBED, {"text": "a", "model": SECRET}),
    (names.EMBED, {"text": "a", "task": SECRET}),
    (names.EMBED, {"text": "a", "prompt_name": SECRET}),
    (names.GENERATE, {"prompt": "a", "model": SECRET}),
    (names.FINETUNE, {"path": SECRET}),
    (names.FINETUNE, {"object": SECRET}),
    (names.JOBS_GET, {"id": SECRET}),
    (names.MODELS_INFO, {"model": SECRET}),
    (names.SCHEMA, {"subject": SECRET}),
]


async def test_nothing_that_one_caller_sends_is_shown_to_others(anyone: Client) -> None:
    for subject, body in TELLTALES:
        reply = await anyone.request(subject, json.dumps(body).encode(), timeout=20)
        assert names.ERROR_CODE in reply.headers, body
        assert SECRET.encode() in reply.data, "the caller itself is told"
    for verb in VERBS:
        assert SECRET not in json.dumps(await asked(anyone, f"$SRV.{verb}.ml"))
    errors = [endpoint["last_error"] for endpoint in (await asked(anyone, "$SRV.STATS.ml"))["endpoints"]]
    assert {"422: InvalidField", "404: NotFound"} <= set(errors)


async def test_many_who_list_jobs_at_once_cost_two_readings(
    admin: Client, anyone: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, readings = store.read_entries, []

    async def counted(*what: Any) -> Any:
        readings.append(what)
        return await reading(*what)

    monkeypatch.setattr(store, "read_entries", counted)
    ml = MLClient(admin)
    for _ in range(2):
        listed = await asyncio.gather(*(ml.jobs.list() for _ in range(50)))
        assert [reply.jobs for reply in listed] == [[]] * 50
    assert len(readings) == 1, "nothing has changed since"
    refusal = await admin.request(names.JOBS_LIST, b'{"limit": 1000}', timeout=20)
    assert b"100" in refusal.data
    assert refusal.headers[names.ERROR_CODE] == "422"
