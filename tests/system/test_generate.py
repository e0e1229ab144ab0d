"""What a worker answers that generates text, over a real server, where the answer is one reply."""

import asyncio
import itertools
import json
from dataclasses import replace

import msgpack
import nats
import pytest
from fake_encoder import FakeEncoder
from fake_engine import CONTEXT, VOCABULARY, FakeEngine
from fake_loader import FakeLoader
from gates import entered
from http_probe import scrape
from workers import running_worker

from models.catalogue import SamplingDefaults
from models.generation.types import EngineLimits
from subjects import MLClient, names


async def ask(nc, fields: dict, subject: str = names.GENERATE, **headers: str):
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    message = await nc.request(subject, json.dumps(fields).encode(), timeout=20, headers=sent or None)
    return json.loads(message.data)


async def refused(nc, fields: dict, subject: str = names.GENERATE, **headers: str) -> tuple[int, str]:
    error = (await ask(nc, fields, subject, **headers))["error"]
    return error["code"], error["message"]


async def test_a_prompt_is_completed(nc):
    reply = await ask(nc, {"prompt": "one two", "max_tokens": 3, "seed": 7}, Ml_Request_Id="my-id")
    assert reply == {
        "model": "tiny_coder",
        "version": "fake-fp32",
        "usage": {"prompt_tokens": 2, "cached_tokens": 0, "completion_tokens": 3},
        "text": " 0 1 2",
        "finish_reason": "length",
        "seed": 7,
    }


async def test_text_in_text_out_and_the_facts_beside_it(nc):
    message = await nc.request(names.GENERATE, b"def f():", timeout=20)
    assert message.data.startswith(b" 0 1 2 3")
    assert message.headers[names.CONTENT_TYPE] == names.TEXT
    assert json.loads(message.headers[names.RESULT])["usage"]["completion_tokens"] == 256
    failed = await nc.request(names.GENERATE, b"poison", timeout=20)
    assert failed.data.startswith(b"error 500: internal error")
    assert failed.headers[names.ERROR_CODE] == "500"


async def test_what_is_asked_reaches_the_engine(nc, engine):
    asked = {
        "prompt": "a",
        "max_tokens": 9,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "logit_bias": {"3": -100},
        "seed": 2**64 - 1,
        "stop": "4",
        "stop_token_ids": [17],
    }
    reply = await ask(nc, asked, Ml_Request_Id="r")
    assert (reply["text"], reply["finish_reason"], reply["stop_reason"]) == (" 0 1 2 3", "stop", "4")
    request = engine.requests["1.0"]
    assert (request.max_tokens, request.min_tokens, request.stop, request.stop_ids) == (9, 2, ("4",), {0, 17})
    sampling = request.sampling
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "seed"):
        assert getattr(sampling, name) == asked[name]
    assert sampling.logit_bias == {3: -100}


async def test_what_is_not_asked_comes_from_the_model_and_then_is_neutral(nats_url):
    engine = FakeEngine()
    engine.facts = replace(engine.facts, defaults=SamplingDefaults(temperature=0.2, top_k=40))
    async with running_worker(nats_url, engine), await nats.connect(nats_url) as nc:
        await ask(nc, {"prompt": "a", "max_tokens": 1, "top_k": 0}, Ml_Request_Id="r")
        seeds = {(await ask(nc, {"prompt": "a", "max_tokens": 1}))["seed"] for _ in range(3)}
    sampling = engine.requests["1.0"].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.repetition_penalty) == (0.2, 0, 1, 1)
    assert len(seeds) == 3
    assert max(seeds) < 2**53, "JavaScript reads no more exactly"


async def test_n_completions_have_seeds_of_their_own(nc, engine):
    reply = await ask(nc, {"prompt": "a b", "max_tokens": 2, "n": 3, "seed": 2**64 - 2}, Ml_Request_Id="r")
    assert [choice["seed"] for choice in reply["choices"]] == [2**64 - 2, 2**64 - 1, 0]
    assert [choice["choice"] for choice in reply["choices"]] == [0, 1, 2]
    assert {choice["text"] for choice in reply["choices"]} == {reply["text"]} == {" 0 1"}
    assert reply["usage"] == {"prompt_tokens": 2, "cached_tokens": 0, "completion_tokens": 6}
    assert [request.sampling.seed for request in engine.requests.values()] == [2**64 - 2, 2**64 - 1, 0]
    assert list(engine.requests) == ["1.0", "1.1", "1.2"]


async def test_more_completions_than_may_wait_are_no_reason_to_refuse_the_rest(nats_url):
    engine = FakeEngine(limits=EngineLimits(max_running=2, waiting=1))
    async with running_worker(nats_url, engine), await nats.connect(nats_url) as nc:
        reply = await ask(nc, {"prompt": "a", "max_tokens": 2, "n": 16})
        prompts = [f"prompt number {i}" for i in range(40)]
        batch = await ask(nc, {"prompts": prompts, "max_tokens": 2, "n": 2}, names.GENERATE_BATCH)
    assert len(reply["choices"]) == 16
    assert {choice["text"] for result in batch["results"] for choice in result["choices"]} == {" 0 1"}
    assert max(engine.steps) == 2


async def test_logprobs_and_the_gap_to_fill(nc):
    reply = await ask(nc, {"prompt": "def f", "max_tokens": 2, "logprobs": 1})
    assert reply["text"] == " 0 1"
    top = {"token": "t0", "id": 0, "bytes": [116, 48], "logprob": -1.0}
    first = {"token": " 0", "id": 1, "bytes": [32, 48], "logprob": -0.5, "top": [top]}
    assert reply["logprobs"][0] == first
    assert len(reply["logprobs"]) == 2
    assert (await ask(nc, {"prefix": "a", "suffix": "b", "max_tokens": 1}))["text"] == " 0"


def scores_of(engine: FakeEngine, request: str) -> list[dict]:
    """What the engine says of a request's prompt."""
    told = [{"token": f"p{token}", "id": token, "logprob": -0.25} for token in engine.requests[request].prompt]
    del told[0]["logprob"]
    return [{**one, "bytes": list(one["token"].encode()), "top": []} for one in told]


async def test_a_prompt_is_scored(nc, engine):
    asked = {"prompt": "def f x", "max_tokens": 0, "echo": True, "logprobs": 0, "seed": 7}
    reply = await ask(nc, asked)
    assert reply == {
        "model": "tiny_coder",
        "version": "fake-fp32",
        "usage": {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 0},
        "text": "def f x",
        "finish_reason": "length",
        "seed": 7,
        "logprobs": scores_of(engine, "1.0"),
    }
    packed = await nc.request(
        names.GENERATE, msgpack.packb(asked), timeout=20, headers={names.CONTENT_TYPE: names.MSGPACK}
    )
    assert msgpack.unpackb(packed.data)["logprobs"] == reply["logprobs"]
    typed = await MLClient(nc).generate("def f x", max_tokens=0, echo=True, logprobs=0)
    assert (typed.text, [one.logprob for one in typed.logprobs]) == ("def f x", [None, -0.25, -0.25])
    assert "logprobs" not in await ask(nc, {**asked, "logprobs": None})


async def test_a_text_with_its_prompts_scores_before_its_own(nc, engine):
    asked = {"max_tokens": 2, "echo": True, "logprobs": 0, "n": 2}
    reply = await ask(nc, {"prompt": "def f", **asked})
    for number, choice in enumerate(reply["choices"]):
        assert choice["text"] == "def f 0 1"
        assert choice["logprobs"][:2] == scores_of(engine, f"1.{number}")
        assert [one["token"] for one in choice["logprobs"][2:]] == [" 0", " 1"]
    batch = await ask(nc, {"prompts": ["a b", " ", "c"], **asked, "n": 1, "max_tokens": 0}, names.GENERATE_BATCH)
    assert [result["text"] for result in batch["results"]] == ["a b", "", "c"]
    scores = [scores_of(engine, "2.0"), [], scores_of(engine, "2.2")]
    assert [result["logprobs"] for result in batch["results"]] == scores


async def test_a_batch_in_order_and_its_bad_prompt_alone(nc, engine):
    engine.scripts["short"] = [" end"]
    asked = {"prompts": ["one two", "poison", " ", "short"], "max_tokens": 2, "seed": 5}
    reply = await ask(nc, asked, names.GENERATE_BATCH, Ml_Request_Id="b")
    assert [result["text"] for result in reply["results"]] == [" 0 1", "", "", " end"]
    assert [result["finish_reason"] for result in reply["results"]] == ["length", "error", "error", "stop"]
    assert [result["seed"] for result in reply["results"]] == [5, 6, 7, 8]
    assert [result.get("error", {}).get("code") for result in reply["results"]] == [None, 500, 422, None]
    assert "prompt" in reply["results"][2]["error"]["message"]
    assert reply["usage"] == {"prompt_tokens": 4, "cached_tokens": 0, "completion_tokens": 3}
    echoed = await ask(nc, {**asked, "echo": True}, names.GENERATE_BATCH)
    assert [result["text"] for result in echoed["results"]] == ["one two 0 1", "", "", "short end"]


async def test_a_choice_that_fails_costs_the_others_nothing(nc, engine):
    engine.poisoned = {8}
    reply = await ask(nc, {"prompt": "a", "max_tokens": 2, "n": 3, "seed": 7})
    found = [(one["text"], one["finish_reason"], one.get("error", {}).get("code")) for one in reply["choices"]]
    assert found == [(" 0 1", "length", None), ("", "error", 500), (" 0 1", "length", None)]
    engine.poisoned = {7, 8, 9}
    assert (await refused(nc, {"prompt": "a", "max_tokens": 2, "n": 3, "seed": 7}))[0] == 500
    assert (await refused(nc, {"prompt": " ", "n": 3}))[0] == 422


async def test_a_stop_reason_is_what_the_request_named_and_not_the_models_own_end(nc, engine):
    engine.scripts["a"] = [" end"]
    assert "stop_reason" not in await ask(nc, {"prompt": "a"})
    assert (await ask(nc, {"prompt": "a", "stop_token_ids": [0]}))["stop_reason"] == 0


@pytest.mark.parametrize(
    ("fields", "code", "named"),
    [
        ({"prompt": ""}, 422, "prompt"),
        ({"prompt": " "}, 422, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, 422, "max_tokens"),
        ({"prompt": "a", "max_tokens": CONTEXT}, 413, "max_tokens"),
        ({"prompt": "a " * CONTEXT}, 413, "context"),
        ({"prompt": "a", "temperature": -1}, 422, "temperature"),
        ({"prompt": "a", "top_p": 0}, 422, "top_p"),
        ({"prompt": "a", "n": 1000}, 422, "'n'"),
        ({"prompt": "a", "stop": ["x"] * 100}, 413, "stop"),
        ({"prompt": "a", "stop": [""]}, 422, "stop"),
        ({"prompt": "a", "stop": ["x"] * 100}, 413, "at most 16 items, not 100"),
        ({"prompt": "a", "stop_token_ids": [VOCABULARY]}, 422, "stop_token_ids"),
        ({"prompt": "a", "logit_bias": {str(VOCABULARY): 1}}, 422, "logit_bias"),
        ({"messages": [{"role": "user", "content": "x"}]}, 422, "messages"),
        ({"prompt": "a", "model": "nope"}, 404, "nope"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(nc, fields, code, named):
    found, message = await refused(nc, fields)
    assert (found, named in message) == (code, True), message


async def test_a_model_of_the_other_kind_says_where_to_ask(nc):
    assert await refused(nc, {"text": "a", "model": "tiny_coder"}, names.EMBED) == (
        422,
        "field 'model': model 'tiny_coder' generates text; ask ml.generate",
    )
    assert await refused(nc, {"prompt": "a", "model": "minilm"}) == (
        422,
        "field 'model': model 'minilm' gives vectors; ask ml.embed",
    )


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_again(nats_url):
    """At once: the step that runs meanwhile has no end."""
    engine = FakeEngine(limits=EngineLimits(max_running=1, waiting=1))
    engine.gate.clear()
    async with running_worker(nats_url, engine) as started, await nats.connect(nats_url) as nc:
        running = asyncio.create_task(refused(nc, {"prompt": "a", "max_tokens": 4000}, Ml_Request_Id="long"))
        await entered(engine)
        others = [asyncio.create_task(ask(nc, {"prompt": "b", "max_tokens": 1})) for _ in range(4)]
        for first in itertools.islice(asyncio.as_completed(others), 3):
            error = (await first)["error"]
            assert (error["code"], error["retryable"], error["retry_after_ms"] >= 50) == (429, True, True)
        code, message = await refused(nc, {"prompt": "c"})
        assert (code, "2 requests run or wait" in message) == (429, True)
        await nc.publish(names.cancel_subject("long"), b"")
        assert (await running)[0] == 499
        engine.gate.set()
        assert sorted(len(reply) for reply in await asyncio.gather(*others))[-1] > 1
        load = started.manager.registry.current("tiny_coder").serves.engine.load
    assert (load.running, load.waiting) == (0, 0)


async def test_a_cancelled_request_and_one_past_its_deadline_leave_the_engine(nc, engine):
    engine.gate.clear()
    asked = {"prompt": "a", "max_tokens": 4000}
    cancelled = asyncio.create_task(refused(nc, asked, Ml_Request_Id="c"))
    late = asyncio.create_task(refused(nc, asked, Ml_Request_Id="l", Ml_Timeout_Ms="300"))
    await entered(engine)
    await nc.publish(names.cancel_subject("c"), b"")
    assert (await cancelled)[0] == 499
    assert (await late)[0] == 408
    engine.gate.set()
    assert (await ask(nc, {"prompt": "b", "max_tokens": 1}))["text"] == " 0"
    assert {"1.0", "2.0"} <= set(engine.aborts)


async def test_an_id_that_runs_already_is_refused(nc, engine):
    engine.gate.clear()
    first = asyncio.create_task(ask(nc, {"prompt": "a", "max_tokens": 1}, Ml_Request_Id="twice"))
    await entered(engine)
    code, message = await refused(nc, {"prompt": "a", "max_tokens": 1}, Ml_Request_Id="twice")
    assert (code, names.REQUEST_ID in message) == (409, True)
    engine.gate.set()
    assert (await first)["text"] == " 0"
    assert (await ask(nc, {"prompt": "a", "max_tokens": 1}, Ml_Request_Id="twice"))["text"] == " 0"


async def test_an_id_that_comes_again_after_its_deadline_gets_its_own_text(nc, engine):
    """The engine still holds the first of them, in a step that does not end, when the second comes."""
    engine.gate.clear()
    asked = {"prompt": "a", "max_tokens": 6}
    assert (await refused(nc, asked, Ml_Request_Id="again", Ml_Timeout_Ms="300"))[0] == 408
    again = asyncio.create_task(ask(nc, asked, Ml_Request_Id="again"))
    await nc.flush()
    engine.gate.set()
    reply = await again
    assert (reply["text"], reply["finish_reason"]) == (" 0 1 2 3 4 5", "length")


async def test_a_reply_that_cannot_fit_is_refused_as_soon_as_that_is_sure(nats_url, engine):
    async with running_worker(nats_url, FakeEncoder(), engine), await nats.connect(nats_url) as nc:
        engine.scripts["long"] = ["x" * 100_000] * 200
        code, message = await refused(nc, {"prompt": "long", "max_tokens": 200})
        assert (code, "max_tokens" in message) == (413, True)
        assert (await ask(nc, {"prompt": "b", "max_tokens": 1}))["text"] == " 0"


async def test_a_reply_that_surely_cannot_fit_is_refused_before_any_work(nc, engine):
    code, message = await refused(nc, {"prompt": "a", "max_tokens": 4000, "min_tokens": 4000, "logprobs": 20})
    assert (code, "max_tokens" in message) == (413, True)
    code, _ = await refused(nc, {"prompt": "a" * 100_000, "n": 16, "echo": True, "max_tokens": 0})
    assert (code, engine.requests) == (413, {})


async def test_plain_text_has_no_place_for_choices_and_logprobs(nc):
    for fields in ({"n": 2}, {"logprobs": 0}):
        body = json.dumps({"prompt": "a", **fields}).encode()
        message = await nc.request(names.GENERATE, body, timeout=20, headers={names.ACCEPT: names.TEXT})
        assert message.headers[names.ERROR_CODE] == "422"


async def test_headers_count_where_a_text_nearly_fills_a_message(nc, engine):
    """The server cuts off a worker that sends more than it takes."""
    stop = "\N{PILE OF POO}" * 256

    async def ask_long(chars: int):
        engine.scripts["long"] = ["x" * chars, stop]
        body = json.dumps({"prompt": "long", "stop": stop}).encode()
        return await nc.request(names.GENERATE, body, timeout=20, headers={names.ACCEPT: names.TEXT})

    fits, does_not = await ask_long(nc.max_payload - 1024), await ask_long(nc.max_payload - 500)
    assert len(fits.data) == nc.max_payload - 1024
    assert stop.startswith(json.loads(fits.headers[names.RESULT])["stop_reason"])
    assert does_not.headers[names.ERROR_CODE] == "413"
    assert (await ask(nc, {"prompt": "b", "max_tokens": 1}))["text"] == " 0"


async def test_a_prompt_far_beyond_the_context_is_not_even_tokenised(nc, engine):
    code, message = await refused(nc, {"prompt": "x " * 499_000})
    assert (code, "context" in message) == (413, True)


async def test_without_max_tokens_a_text_ends_with_the_context(nc):
    reply = await ask(nc, {"prompt": " ".join(["a"] * (CONTEXT - 3))})
    assert (reply["usage"]["completion_tokens"], reply["finish_reason"]) == (3, "length")


async def test_who_comes_while_a_step_fails_is_none_of_the_failed(nc, engine):
    engine.gate.clear()
    culprit = asyncio.create_task(ask(nc, {"prompt": "break", "max_tokens": 5}))
    await entered(engine)
    late = asyncio.create_task(ask(nc, {"prompt": "a", "max_tokens": 2}))
    await nc.flush()
    assert await ask(nc, {"kind": "generation"}, names.MODELS_LIST)  # the worker has read what came before
    engine.gate.set()
    assert (await culprit)["error"]["code"] == 500
    assert (await late)["text"] == " 0 1"


async def test_a_step_that_raises_fails_its_requests_and_the_engine_goes_on(nc, engine):
    engine.gate.clear()
    beside = asyncio.create_task(ask(nc, {"prompt": "a", "max_tokens": 4900}))
    await entered(engine)
    culprit = asyncio.create_task(ask(nc, {"prompt": "break", "max_tokens": 5}))
    engine.gate.set()
    codes = [reply.get("error", {}).get("code") for reply in await asyncio.gather(beside, culprit)]
    assert codes == [500, 500]
    assert (await ask(nc, {"prompt": "c", "max_tokens": 2}))["text"] == " 0 1"


async def test_embedding_goes_on_beside_generation(nc, engine):
    engine.slow(0.005)
    long = asyncio.create_task(ask(nc, {"prompt": "a", "max_tokens": 4000}))
    await entered(engine)
    vectors = await asyncio.gather(*(ask(nc, {"text": f"text {i}"}, names.EMBED) for i in range(50)))
    assert {len(reply["embedding"]) for reply in vectors} == {8}
    assert not long.done()
    engine.release()
    assert (await long)["usage"]["completion_tokens"] == 4000


async def test_the_catalogues_model_serves_who_names_none_and_is_loaded_on_first_use(nats_url):
    loader = FakeLoader()
    async with running_worker(nats_url, loader=loader) as started, await nats.connect(nats_url) as nc:
        assert loader.loads["smollm2"] == 0
        reply = await ask(nc, {"prompt": "a", "max_tokens": 1})
        assert (reply["model"], reply["version"]) == ("smollm2", "v1-fp32")
        resident = started.manager.registry.current("smollm2")
        assert resident.memory_bytes == 10**9 + 500
        listed = await ask(nc, {"kind": "generation"}, names.MODELS_LIST)
        entry = next(model for model in listed["models"] if model["id"] == "smollm2")
        assert (entry["default_for"], entry["max_tokens"], entry.get("dimensions")) == (
            ["prompt", "messages"],
            CONTEXT,
            None,
        )
        assert entry["loaded"]["memory_bytes"] == 10**9 + 500
        changed = await ask(nc, {"model": "smollm2"}, names.MODELS_UNLOAD)
        assert changed["unloaded"]["version"] == "v1-fp32"
        assert loader.engines["smollm2"][0].closed


async def test_each_form_of_a_request_has_a_default_of_its_own(nats_url):
    loader = FakeLoader()
    async with running_worker(nats_url, loader=loader), await nats.connect(nats_url) as nc:
        for fields in ({"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}):
            assert (await ask(nc, {**fields, "max_tokens": 1}))["model"] == "smollm2"
        assert (await ask(nc, {"prefix": "a", "suffix": "b", "max_tokens": 1}))["model"] == "tiny_coder"
        assert (await ask(nc, {"prompts": ["a"], "max_tokens": 1}, names.GENERATE_BATCH))["model"] == "smollm2"
        listed = (await ask(nc, {}, names.MODELS_LIST))["models"]
        assert {model["id"]: model["default_for"] for model in listed if model["default"]} == {
            "minilm": ["embedding"],
            "smollm2": ["prompt", "messages"],
            "tiny_coder": ["fim"],
        }
        info = json.loads((await nc.request("$SRV.INFO.ml", b"", timeout=20)).data)["metadata"]
        assert {name: model for name, model in info.items() if name.startswith("default_")} == {
            "default_model": "minilm",
            "default_generation_model": "smollm2",
            "default_chat_model": "smollm2",
            "default_fim_model": "tiny_coder",
        }


async def test_a_named_generation_model_is_the_default(nats_url):
    catalogue = {"own": {"kind": "generation", "folder": "weights/own"}}
    loader = FakeLoader()
    async with (
        running_worker(nats_url, loader=loader, models=("minilm", "own"), catalogue=catalogue),
        await nats.connect(nats_url) as nc,
    ):
        assert (await ask(nc, {"prompt": "a", "max_tokens": 1}))["model"] == "own"
        assert (await ask(nc, {"text": "a"}, names.EMBED))["model"] == "minilm"


async def test_messagepack_in_and_out(nc):
    body = msgpack.packb({"prompt": "a", "max_tokens": 1, "logit_bias": {3: 1.0}, "seed": 2**64 - 1})
    reply = msgpack.unpackb((await nc.request(names.GENERATE, body, timeout=20)).data)
    assert (reply["text"], reply["seed"]) == (" 0", 2**64 - 1)


async def test_info_stats_and_metrics_tell_of_generation(nats_url, engine):
    async with running_worker(nats_url, engine, metrics_port=0) as started, await nats.connect(nats_url) as nc:
        await ask(nc, {"prompt": "a b", "max_tokens": 5})
        info = json.loads((await nc.request("$SRV.INFO.ml", b"", timeout=20)).data)
        stats = json.loads((await nc.request("$SRV.STATS.ml", b"", timeout=20)).data)
        schemas = (await MLClient(nc).schema()).schemas
        text = await asyncio.to_thread(scrape, started.metrics_port)
    assert info["metadata"]["default_generation_model"] == "tiny_coder"
    assert info["metadata"]["model.tiny_coder"] == "fake-fp32 on cpu"
    assert "messages" in schemas[names.GENERATE].request["properties"]
    assert "finish_reason" in json.dumps(schemas[names.GENERATE_BATCH].reply)
    data = stats["endpoints"][0]["data"]
    assert data["generation"]["tiny_coder"]["completion_tokens"] == 5
    assert data["generating"]["kv_bytes"] == 500
    assert "completion_tokens" not in data["generating"], "totals stand in one place"
    for line in (
        'mlbus_generate_ttft_seconds_count{model="tiny_coder"} 1.0',
        'mlbus_generate_inter_token_seconds_count{model="tiny_coder"} 4.0',
        'mlbus_generate_completion_tokens_total{model="tiny_coder"} 5.0',
        'mlbus_generate_completions_total{model="tiny_coder",reason="length"} 1.0',
        "mlbus_generate_kv_bytes 500.0",
        "mlbus_generate_stuck_seconds 0.0",
        "mlbus_generate_running 0.0",
    ):
        assert line in text


async def test_the_first_text_is_timed_where_a_completion_without_any_ended_before(nats_url, engine):
    engine.scripts["quiet"] = [" x"]
    async with running_worker(nats_url, engine, metrics_port=0) as started, await nats.connect(nats_url) as nc:
        asked = {"prompts": ["quiet", "a"], "max_tokens": 2, "stop": "x"}
        reply = await ask(nc, asked, names.GENERATE_BATCH)
        text = await asyncio.to_thread(scrape, started.metrics_port)
    assert [result["text"] for result in reply["results"]] == ["", " 0 1"]
    assert 'mlbus_generate_ttft_seconds_count{model="tiny_coder"} 1.0' in text


async def test_a_form_that_nothing_serves_by_default_is_refused_and_harms_nothing(nats_url):
    catalogue = {"smollm2": {"default": False}}
    async with (
        running_worker(nats_url, loader=FakeLoader(), catalogue=catalogue),
        await nats.connect(nats_url) as nc,
    ):
        code, message = await refused(nc, {"messages": [{"role": "user", "content": "a"}]})
        assert (code, "'messages'" in message) == (404, True)
        assert (await ask(nc, {"prompt": "a", "max_tokens": 1}))["model"] == "tiny_coder"
        info = json.loads((await nc.request("$SRV.INFO.ml", b"", timeout=20)).data)["metadata"]
        assert "default_chat_model" not in info
