"""PING, INFO and STATS as the micro protocol has them."""

import asyncio
import json
from datetime import datetime

import jsonschema
import micro_schemas
import nats
import pytest
from workers import running_worker

from subjects import MLClient, names
from subjects.errors import NotFound


@pytest.fixture
async def nc(nats_url):
    connection = await nats.connect(nats_url)
    yield connection
    await connection.close()


@pytest.mark.parametrize("verb", ["PING", "INFO", "STATS"])
async def test_answers_fit_the_published_schemas(nats_url, nc, verb):
    async with running_worker(nats_url):
        ml = MLClient(nc)
        await ml.embed("x")
        (answer,) = await ml.discover(verb)
        jsonschema.validate(answer, getattr(micro_schemas, verb))
        for subject in (f"$SRV.{verb}", f"$SRV.{verb}.ml", f"$SRV.{verb}.ml.{answer['id']}"):
            assert json.loads((await nc.request(subject, b"", timeout=5)).data)["id"] == answer["id"]


async def test_info_names_the_subjects_and_where_their_schemas_are(nats_url, nc):
    async with running_worker(nats_url):
        ml = MLClient(nc)
        (info,) = await ml.discover("INFO")
        schemas = (await ml.schema()).schemas
    endpoints = {endpoint["name"]: endpoint for endpoint in info["endpoints"]}
    shared = [names.EMBED, names.EMBED_BATCH, names.SIMILARITY, names.GENERATE, names.GENERATE_BATCH]
    shared += [names.MODELS_LIST, names.MODELS_INFO, names.MODELS_RECOMMENDED, names.MODELS_PROMOTE]
    shared += [
        names.FINETUNE,
        names.FINETUNE_UPLOAD,
        names.JOBS_GET,
        names.JOBS_WATCH,
        names.JOBS_LIST,
        names.JOBS_CANCEL,
    ]
    changes = [names.MODELS_LOAD, names.MODELS_UNLOAD, names.MODELS_RELOAD]
    here = [f"{subject}.{info['id']}" for subject in (names.MODELS_LIST, names.MODELS_INFO, *changes)]
    shared += [names.TOKENIZE, names.DETOKENIZE, names.SCHEMA]
    subjects = {endpoint["subject"]: endpoint["queue_group"] for endpoint in endpoints.values()}
    assert subjects == {**dict.fromkeys(shared, "ml"), **dict.fromkeys([*changes, *here], "")}
    assert {subject.replace(info["id"], "*") for subject in subjects} == schemas.keys()
    request = schemas[names.EMBED].request
    jsonschema.validate({"text": "a", "dimensions": 4}, request)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"text": "a", "unknown": 4}, request)
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema.reply)
    assert info["metadata"]["schemas"] == names.SCHEMA
    assert int(info["metadata"]["max_payload"]) == nc.max_payload
    assert info["description"]


async def test_the_schema_of_one_subject(nats_url, nc):
    async with running_worker(nats_url):
        ml = MLClient(nc)
        assert list((await ml.schema(names.SIMILARITY)).schemas) == [names.SIMILARITY]
        assert list((await ml.schema(f"{names.MODELS_LOAD}.of_any_worker")).schemas) == [f"{names.MODELS_LOAD}.*"]
        assert json.loads((await nc.request(names.SCHEMA, b"ml.embed", timeout=5)).data)["schemas"].keys() == {
            "ml.embed"
        }
        with pytest.raises(NotFound, match=r"ml\.embed, "):
            await ml.schema("ml.embed.nope")


async def test_stats_count_spawned_work_and_errors(nats_url, nc):
    async with running_worker(nats_url):
        ml = MLClient(nc)
        await asyncio.gather(*(ml.embed(f"text {n}") for n in range(20)))
        await nc.request(names.EMBED, b"", timeout=5)
        (stats,) = await ml.discover("STATS")
    embed = stats["endpoints"][0]
    assert (embed["num_requests"], embed["num_errors"]) == (21, 1)
    assert embed["last_error"].startswith("422: ")
    assert embed["processing_time"] >= 21 * embed["average_processing_time"] > 0
    assert embed["data"]["batches"]["minilm"]["texts"] == 20
    assert embed["data"]["errors"] == {"422": 1}
    assert datetime.fromisoformat(stats["started"]).tzinfo


async def test_every_worker_of_a_fleet_answers(nats_url, nc):
    async with running_worker(nats_url), running_worker(nats_url):
        answers = await MLClient(nc).discover("PING")
    assert len({answer["id"] for answer in answers}) == 2


async def test_nobody_answers_when_nobody_serves(nc):
    assert await MLClient(nc).discover("PING") == []
