"""`ml.models.*` and what lies behind them, over a real server: loading, leases, eviction, swaps, failures."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import pytest
from fake_encoder import FakeEncoder, vector_of, word_id
from fake_loader import GB, FakeLoader
from gates import entered
from workers import running_worker

from models.encoders.base import finish
from models.errors import ModelUnavailable, OverBudget
from subjects import MLClient, names
from subjects.errors import Conflict, MLError, NotFound, NotServed, OutOfMemory, from_reply

OWN = {model: {"kind": "embedding", "folder": f"weights/{model}"} for model in ("a", "b", "c")}


@pytest.fixture
def loader():
    loader = FakeLoader()
    yield loader
    loader.gate.set()
    for encoders in loader.encoders.values():
        for encoder in encoders:
            encoder.gate.set()


@pytest.fixture
async def nc(nats_url):
    connection = await nats.connect(nats_url)
    yield connection
    await connection.close()


@pytest.fixture
async def ml(nc):
    return MLClient(nc, timeout_s=20, retries=0)


@asynccontextmanager
async def serving(url: str, loader: FakeLoader, **settings: object) -> AsyncIterator[None]:
    async with running_worker(url, loader=loader, **{"catalogue": OWN, **settings}):
        yield


async def ask(nc, subject: str, **fields: object) -> dict:
    reply = await nc.request(subject, json.dumps(fields).encode() if fields else b"", timeout=20)
    body = json.loads(reply.data)
    if code := (reply.headers or {}).get(names.ERROR_CODE):
        raise from_reply(int(code), reply.headers[names.ERROR], body)
    return body


async def entry(nc, model: str) -> dict:
    return (await ask(nc, names.MODELS_INFO, model=model))["model"]


async def until_leased(nc, model: str, requests: int) -> None:
    """Wait until so many requests use a model; each question is answered by the worker, so none is asked in vain."""
    async with asyncio.timeout(10):
        while ((await entry(nc, model)).get("loaded") or {}).get("requests") != requests:
            pass


def held(loader: FakeLoader, model: str) -> FakeEncoder:
    """The model that serves now; its passes wait from now on."""
    encoder = loader.encoders[model][-1]
    encoder.gate.clear()
    encoder.entered.clear()
    return encoder


async def test_a_hundred_concurrent_requests_load_a_model_once(nats_url, ml, loader):
    async with serving(nats_url, loader):
        replies = await asyncio.gather(*(ml.embed(f"text {n}", model="a") for n in range(100)))
    assert loader.loads == {"minilm": 1, "a": 1}
    assert {(reply.model, reply.version) for reply in replies} == {("a", "v1-fp32")}


async def test_whoever_waits_for_a_load_may_leave_without_stopping_it(nats_url, ml, loader):
    async with serving(nats_url, loader):
        loader.gate.clear()
        loader.entered.clear()
        impatient = asyncio.create_task(ml.embed("x", model="a"))
        await entered(loader)
        patient = asyncio.create_task(ml.embed("y", model="a"))
        with pytest.raises(MLError):
            await ml.embed("z", model="a", timeout_s=0.1)
        impatient.cancel()
        assert (await ml.embed("others go on")).model == "minilm"
        loader.gate.set()
        assert (await patient).model == "a"
    assert loader.loads["a"] == 1


async def test_the_least_recently_used_model_makes_room(nats_url, nc, ml, loader):
    loader.budget = 3 * GB
    async with serving(nats_url, loader):
        for model in ("a", "b", "a", "minilm", "c"):
            await ml.embed("x", model=model)
        assert (await entry(nc, "b")).get("loaded") is None
        assert loader.encoders["b"][0].closed
        memory = (await ask(nc, names.MODELS_LIST))["memory"]
        assert memory == [{"device": "cpu", "budget_bytes": 3 * GB, "used_bytes": 3 * GB}]
        assert (await ml.embed("x", model="b")).version == "v2-fp32"
    assert loader.given_back == ["cpu", "cpu"]


async def test_a_model_in_use_is_evicted_once_its_requests_are_done(nats_url, nc, ml, loader):
    loader.budget = GB
    async with serving(nats_url, loader):
        encoder = held(loader, "minilm")
        in_flight = asyncio.create_task(ml.embed("in flight"))
        await entered(encoder)
        newcomer = asyncio.create_task(ml.embed("x", model="a"))
        later = asyncio.create_task(ml.embed("others are still served"))
        await until_leased(nc, "minilm", 2)
        assert loader.loads["a"] == 0
        encoder.gate.set()
        replies = await asyncio.gather(in_flight, later, newcomer)
        assert [reply.version for reply in replies] == ["v1-fp32"] * 3
        assert encoder.closed


async def test_a_model_for_which_others_would_have_to_stop_is_refused_after_a_while(
    nats_url, nc, ml, loader, monkeypatch
):
    monkeypatch.setattr("service.residency.load_queue.CROWDED_S", 0.2)
    loader.budget = GB
    async with serving(nats_url, loader):
        encoder = held(loader, "minilm")
        in_flight = asyncio.create_task(ml.embed("in flight"))
        await entered(encoder)
        with pytest.raises(OutOfMemory, match="minilm would have to go, and requests use that"):
            await ml.embed("x", model="a")
        encoder.gate.set()
        assert (await in_flight).version == "v1-fp32"
        assert (await ml.embed("x", model="a")).model == "a"  # the refusal is not remembered


async def test_more_models_than_fit_serve_everybody_in_the_end(nats_url, ml, loader):
    loader.budget = 2 * GB
    asked = [("minilm", "a", "b", "c")[n % 4] for n in range(80)]
    async with serving(nats_url, loader):
        replies = await asyncio.gather(*(ml.embed(f"text {n}", model=model) for n, model in enumerate(asked)))
    assert [reply.model for reply in replies] == asked


async def test_pinned_models_stay_and_what_does_not_fit_is_an_error(nats_url, nc, ml, loader):
    loader.budget = 2 * GB
    loader.sizes = {"b": 3 * GB}
    async with serving(nats_url, loader, memory={"pinned": ["minilm"]}):
        await ask(nc, names.MODELS_LOAD, model="a", pin=True)
        with pytest.raises(OutOfMemory, match=r"'c' takes 1.00 GB"):
            await ml.embed("x", model="c")
        with pytest.raises(OutOfMemory, match=r"'b' takes 3.00 GB.*budget_gb"):
            await ml.embed("x", model="b")
        assert loader.loads == {"minilm": 1, "a": 1}
        await ask(nc, names.MODELS_LOAD, model="a", pin=False)
        await ask(nc, names.MODELS_LOAD, model="c")
        assert (await entry(nc, "a")).get("loaded") is None


async def test_a_model_that_turns_out_larger_than_expected_is_dropped_again(nats_url, nc, ml, loader):
    loader.budget = 2 * GB
    loader.expected_sizes = {"a": GB}
    loader.sizes = {"a": 2 * GB}
    async with serving(nats_url, loader, memory={"pinned": ["minilm"]}):
        with pytest.raises(OutOfMemory, match=r"'a' takes 2.00 GB"):
            await ml.embed("x", model="a")
        assert loader.encoders["a"][0].closed
        assert (await ml.embed("x")).model == "minilm"
        assert (await ask(nc, names.MODELS_LIST))["memory"][0]["used_bytes"] == GB


async def test_a_failed_load_is_remembered_and_harms_nobody_else(nats_url, nc, ml, loader):
    loader.failures = {"a": ModelUnavailable("a", "its shard 2 is missing; pull it again."), "b": RuntimeError("odd")}
    async with serving(nats_url, loader):
        asked = [ml.embed("x", model="a") for _ in range(10)] + [ml.embed("y") for _ in range(10)]
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(result) for result in results[:10]] == [NotServed] * 10
        assert "shard 2 is missing" in str(results[0])
        assert all(result.model == "minilm" for result in results[10:])
        with pytest.raises(NotServed, match="shard 2"):
            await ml.embed("x", model="a")
        assert loader.loads["a"] == 1
        assert "shard 2" in (await entry(nc, "a"))["failure"]
        with pytest.raises(NotServed, match="loading it broke"):
            await ml.embed("x", model="b")
        del loader.failures["a"]
        await ask(nc, names.MODELS_LOAD, model="a")  # an operator need not wait
        assert (await ml.embed("x", model="a")).version == "v2-fp32"


async def test_a_swap_under_load_fails_nobody_and_mixes_nothing(nats_url, nc, ml, loader):
    class Marked(FakeEncoder):
        """Its vectors tell which load made it."""

        def encode(self, batch, between_layers=None):
            return super().encode(batch, between_layers) * 0 + float(self.version[1 : self.version.index("-")])

    load, done = loader.load, asyncio.Event()

    def marked(spec, options):
        encoder = load(spec, options)
        encoder.__class__ = Marked
        return encoder

    loader.load = marked
    seen: set[str] = set()

    async def caller(name: int) -> None:
        while not done.is_set():
            batch = await ml.embed_batch([f"{name} {n}" for n in range(20)], normalize=False)
            assert {f"v{vector[0]:.0f}-fp32" for vector in batch.embeddings} == {batch.version}
            seen.add(batch.version)

    async with serving(nats_url, loader), asyncio.TaskGroup() as callers:
        for name in range(8):
            callers.create_task(caller(name))
        for number in range(2, 12):
            reply = await ask(nc, names.MODELS_RELOAD, model="minilm")
            assert reply["loaded"]["version"] == f"v{number}-fp32"
            assert (await ml.embed("later ones see the new")).version == f"v{number}-fp32"
        done.set()
    assert len(seen) > 5
    assert all(encoder.closed for encoder in loader.encoders["minilm"][:-1])


async def test_requests_in_flight_finish_on_the_old_weights(nats_url, nc, ml, loader):
    async with serving(nats_url, loader):
        old = held(loader, "minilm")
        in_flight = asyncio.create_task(ml.embed("in flight"))
        await entered(old)
        await ask(nc, names.MODELS_RELOAD, model="minilm")
        later = asyncio.create_task(ml.embed("later"))
        await until_leased(nc, "minilm", 1)
        old.gate.set()
        assert (await in_flight).version == "v1-fp32"
        assert (await later).version == "v2-fp32"


async def test_new_weights_that_do_not_fit_leave_the_old_ones_serving(nats_url, nc, ml, loader):
    async with serving(nats_url, loader):
        loader.dimensions = {"minilm": 4}
        with pytest.raises(Conflict, match="4 dimensions, those that serve give 8"):
            await ask(nc, names.MODELS_RELOAD, model="minilm")
        assert loader.encoders["minilm"][1].closed
        loader.dimensions = {}
        loader.failures = {"minilm": ModelUnavailable("minilm", "cut short.")}
        with pytest.raises(NotServed, match="cut short"):
            await ask(nc, names.MODELS_RELOAD, model="minilm")
        with pytest.raises(NotFound, match=r"no version '../up'; it has base"):
            await ask(nc, names.MODELS_RELOAD, model="minilm", version="../up")
        with pytest.raises(NotFound, match="unknown model 'nope'"):
            await ask(nc, names.MODELS_RELOAD, model="nope")
        reply = await ml.embed("some words")
        assert reply.version == "v1-fp32"
        expected = finish(vector_of([word_id("some"), word_id("words")])[None], True)[0]
        assert abs(reply.embedding - expected).max() < 1e-6


async def test_unloading_waits_for_nobody_unless_forced(nats_url, nc, ml, loader):
    async with serving(nats_url, loader):
        with pytest.raises(NotFound, match="'a' is not loaded"):
            await ask(nc, names.MODELS_UNLOAD, model="a")
        await ml.embed("x", model="a")
        encoder = held(loader, "a")
        in_flight = asyncio.create_task(ml.embed("in flight", model="a"))
        await entered(encoder)
        with pytest.raises(Conflict, match="in use by 1 requests"):
            await ask(nc, names.MODELS_UNLOAD, model="a")
        forced = asyncio.create_task(ask(nc, names.MODELS_UNLOAD, model="a", force=True))
        async with asyncio.timeout(10):
            while (await entry(nc, "a")).get("loaded"):
                pass
        encoder.gate.set()
        assert (await in_flight).version == "v1-fp32"
        assert (await forced)["unloaded"]["version"] == "v1-fp32"
        assert encoder.closed
        assert (await ml.embed("again", model="a")).version == "v2-fp32"


async def test_an_idle_model_is_unloaded_and_a_pinned_one_stays(nats_url, nc, ml, loader):
    async with serving(nats_url, loader, memory={"idle_unload_s": 0.2, "pinned": ["minilm"]}):
        await ml.embed("x", model="a")
        assert await asyncio.to_thread(loader.gave_back.wait, 10)
        assert (await entry(nc, "a")).get("loaded") is None
        assert (await entry(nc, "minilm"))["loaded"]["pinned"]
        assert (await ml.embed("x", model="a")).version == "v2-fp32"


async def test_a_worker_may_load_nothing_on_demand(nats_url, nc, ml, loader):
    async with serving(nats_url, loader, memory={"load_on_demand": False}):
        with pytest.raises(NotServed, match="loads none on demand; loaded: minilm"):
            await ml.embed("x", model="a")
        await ask(nc, names.MODELS_LOAD, model="a")
        assert (await ml.embed("x", model="a")).model == "a"


async def test_what_an_operator_chose_holds_until_another_choice(nats_url, nc, ml, loader):
    loader.versions = ("base", "v2")
    async with serving(nats_url, loader, memory={"pinned": ["minilm"]}):
        await ask(nc, names.MODELS_LOAD, model="a", quantization="int8", pin=True)
        await ask(nc, names.MODELS_RELOAD, model="a", version="v2")
        await ask(nc, names.MODELS_UNLOAD, model="a")
        await ml.embed("x", model="a")  # as chosen
        assert (await entry(nc, "a"))["loaded"]["pinned"]
        await ask(nc, names.MODELS_LOAD, model="a", pin=False)  # nothing to load
        await ask(nc, names.MODELS_LOAD, model="a", dtype="auto")  # as its entry says
        await ask(nc, names.MODELS_RELOAD, model="a")  # the live version
        assert not (await entry(nc, "a"))["loaded"]["pinned"]
        await ask(nc, names.MODELS_UNLOAD, model="minilm")
        await ml.embed("x")
        assert (await entry(nc, "minilm"))["loaded"]["pinned"]
    made = [(choice.quantization, choice.version) for choice in loader.choices["a"]]
    assert made == [("int8", None), ("int8", "v2"), ("int8", "v2"), (None, "v2"), (None, None)]


async def test_a_model_that_is_unpinned_may_go_when_idle(nats_url, nc, loader):
    async with serving(nats_url, loader, memory={"idle_unload_s": 0.1, "pinned": ["minilm"]}):
        await ask(nc, names.MODELS_LOAD, model="a", pin=True)
        await ask(nc, names.MODELS_LOAD, model="a", pin=False)
        assert await asyncio.to_thread(loader.gave_back.wait, 10)
        assert loader.encoders["a"][0].closed


async def test_the_models_of_the_start_do_not_evict_each_other(nats_url, loader):
    loader.budget = GB
    with pytest.raises(OverBudget, match="'a' takes"):
        async with serving(nats_url, loader, models=["minilm", "a"], strict=True):
            pass


async def test_a_load_that_panics_is_answered(nats_url, nc, ml, loader):
    class Panic(BaseException):
        pass

    loader.failures = {"a": Panic("index out of bounds")}
    async with serving(nats_url, loader):
        with pytest.raises(NotServed, match="loading it broke"):
            await ml.embed("x", model="a")
        assert (await ml.embed("others go on")).model == "minilm"


async def test_weights_of_other_dimensions_are_refused_although_nothing_is_loaded(nats_url, nc, ml, loader):
    async with serving(nats_url, loader):
        await ml.embed("x", model="a")
        await ask(nc, names.MODELS_UNLOAD, model="a")
        loader.dimensions = {"a": 4}
        with pytest.raises(Conflict, match="4 dimensions"):
            await ask(nc, names.MODELS_RELOAD, model="a")


async def test_a_stream_of_long_texts_fits_a_small_queue(nats_url, ml, loader):
    texts = ["word " * 64 for _ in range(300)]
    async with serving(nats_url, loader, limits={"queue_tokens": 1000, "queue_texts": 64}):
        batch, other = await asyncio.gather(ml.embed_batch(texts), ml.embed("a person"))
    assert len(batch.embeddings) == 300
    assert other.usage.tokens == 2


async def test_list_info_and_recommended(nats_url, nc, loader):
    async with serving(nats_url, loader):
        listed = await ask(nc, names.MODELS_LIST)
        by_id = {model["id"]: model for model in listed["models"]}
        shipped = ["qodo", "jina_v3", "minilm", "codellama_7b", "starcoder_1b", "tiny_coder", "smollm2"]
        assert list(by_id) == [*shipped, "a", "b", "c"]
        assert by_id["jina_v3"]["commercial"] is False
        assert by_id["jina_v3"]["default_task"] == "text-matching"
        assert by_id["minilm"]["default"]
        assert by_id["minilm"]["loaded"]["version"] == "v1-fp32"
        assert by_id["minilm"]["loaded"]["requests"] == 0
        assert [model["id"] for model in (await ask(nc, names.MODELS_LIST, kind="generation"))["models"]] == [
            "codellama_7b",
            "starcoder_1b",
            "tiny_coder",
            "smollm2",
        ]
        info = await ask(nc, names.MODELS_INFO, model="minilm")
        assert (info["versions"], info["worker"]) == (["base"], listed["worker"])
        found = (await ask(nc, names.MODELS_RECOMMENDED))["recommended"]
        assert {one["use"]: one["recommended"] for one in found} == {
            "code": "qodo",
            "general": "jina_v3",
            "production": "codellama_7b",
            "dev": "starcoder_1b",
        }
        (code,) = json.loads((await nc.request(names.MODELS_RECOMMENDED, b"code", timeout=10)).data)["recommended"]
        assert (code["model"], code["present"]) == ("minilm", False)


async def test_changes_reach_every_worker_or_one_by_its_id(nats_url, nc, loader):
    other = FakeLoader()
    async with serving(nats_url, loader), serving(nats_url, other):
        workers = [answer["id"] for answer in await MLClient(nc).discover(wait_s=0.5)]
        assert len(workers) == 2
        inbox = nc.new_inbox()
        replies = await nc.subscribe(inbox)
        await nc.publish(names.MODELS_LOAD, b"a", reply=inbox)
        answered = {json.loads((await replies.next_msg(timeout=10)).data)["worker"] for _ in workers}
        assert answered == set(workers)
        assert loader.loads["a"] == other.loads["a"] == 1
        reply = await ask(nc, f"{names.MODELS_UNLOAD}.{workers[0]}", model="a")
        assert reply["worker"] == workers[0]
        states = [await ask(nc, f"{names.MODELS_INFO}.{worker}", model="a") for worker in workers]
        assert [bool(state["model"].get("loaded")) for state in states] == [False, True]


@pytest.mark.parametrize(
    ("subject", "fields"),
    [
        (names.MODELS_LOAD, {"model": "a", "quantization": "int2"}),
        (names.MODELS_LOAD, {"model": "a", "colour": "red"}),
        (names.MODELS_LOAD, {}),
        (names.MODELS_UNLOAD, {"model": "a", "force": "yes"}),
        (names.MODELS_RELOAD, {"model": "a", "version": ""}),
        (names.MODELS_INFO, {"model": ["a"]}),
        (names.MODELS_RECOMMENDED, {"use": "poetry"}),
    ],
)
async def test_bad_requests_name_the_field(nats_url, nc, loader, subject, fields):
    async with serving(nats_url, loader):
        with pytest.raises(MLError) as caught:
            await ask(nc, subject, **fields)
        assert caught.value.code == 422
    assert "a" not in loader.loads
