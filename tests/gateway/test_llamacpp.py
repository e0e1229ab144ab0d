"""llama.cpp's API, asked as llama.vim, llama.vscode, Tabby and Continue ask, held against the same over NATS."""

import asyncio
import json

import pytest
from gateways import Gateway, ask, connection, post, request, running_gateway

from service.gateway.llamacpp.replies import outdented

pytestmark = pytest.mark.asyncio(loop_scope="module")

EXTRA = [{"filename": "src/a.py", "text": "def a(): pass\n", "time": 1.5}]
TIMINGS = ["n", "ms", "per_token_ms", "per_second"]
VIM_FIELDS = [
    "content",
    *(f"timings/{part}_{name}" for part in ("prompt", "predicted") for name in TIMINGS),
    "truncated",
    "tokens_cached",
]


def by_llama_vim(**fields):
    """What autoload/llama.vim sends for a completion."""
    return {
        "id_slot": 0,
        "input_prefix": "before\n",
        "input_suffix": "after",
        "input_extra": [],
        "prompt": "line",
        "n_predict": 128,
        "stop": [],
        "n_indent": 0,
        "top_k": 40,
        "top_p": 0.90,
        "samplers": ["top_k", "top_p", "infill"],
        "stream": False,
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 1000,
        "response_fields": VIM_FIELDS,
        "model": "tiny_coder",
        **fields,
    }


def by_llama_vscode(**fields):
    """What src/llama-server.ts sends for a completion."""
    return {
        "id_slot": 0,
        "input_prefix": "before\n",
        "input_suffix": "after",
        "input_extra": [],
        "prompt": "line",
        "n_predict": 128,
        "n_cmpl": 3,
        "top_k": 40,
        "top_p": 0.99,
        "stream": False,
        "samplers": ["top_k", "top_p", "infill"],
        "cache_prompt": True,
        "t_max_prompt_ms": 500,
        "t_max_predict_ms": 2500,
        "model": "tiny_coder",
        **fields,
    }


class TestInfill:
    async def test_llama_vim_gets_the_fields_that_it_reads(self, setup, gateway: Gateway) -> None:
        setup.engine.scripts["before\nline <> after"] = [" be", "tween"]
        answer = await post(gateway, "/infill", by_llama_vim())
        assert answer.body.startswith(b'{"content":" between"')
        assert answer.json.keys() == set(VIM_FIELDS)
        assert (answer.json["timings/prompt_n"], answer.json["timings/predicted_n"]) == (4, 2)
        assert all(isinstance(answer.json[name], int | float) for name in VIM_FIELDS[1:])

    async def test_llama_vscode_gets_a_list_of_several(self, gateway: Gateway) -> None:
        several = await post(gateway, "/infill", by_llama_vscode(n_predict=2, prompt="other"))
        assert [one["content"] for one in several.json] == [" 0 1"] * 3
        assert [one["index"] for one in several.json] == [0, 1, 2]
        one = await post(gateway, "/infill", by_llama_vscode(n_predict=2, prompt="other", n_cmpl=1))
        assert (one.json["content"], one.json["stop_type"], one.json["stop"]) == (" 0 1", "limit", True)

    async def test_the_text_is_the_one_over_nats_with_the_same_samplers(self, setup, gateway: Gateway) -> None:
        asked = by_llama_vim(n_predict=3, seed=7, input_extra=EXTRA, repeat_penalty=1.5)
        text = (await post(gateway, "/infill", asked)).json["content"]
        gap = {"prefix": "before\nline", "suffix": "after", "context": [{"path": "src/a.py", "text": EXTRA[0]["text"]}]}
        without = {"temperature": 1.0, "repetition_penalty": 1.0}
        options = {"top_k": 40, "top_p": 0.9, "min_p": 0.5, "seed": 7, "max_tokens": 3}
        assert text == (await setup.ml.generate(model="tiny_coder", **gap, **without, **options)).text
        first, second = list(setup.engine.requests.values())[-2:]
        assert first.sampling == second.sampling

    @pytest.mark.parametrize("extra", [EXTRA, [{"text": "of no file"}]])
    async def test_the_cache_is_warmed_with_the_context_alone(self, setup, gateway: Gateway, extra) -> None:
        before = len(setup.engine.requests)
        nothing = {"input_prefix": "", "input_suffix": "", "prompt": "", "n_predict": 0, "samplers": []}
        limits = {"temperature": 0.0, "t_max_prompt_ms": 1, "t_max_predict_ms": 1}
        asked = by_llama_vim(**nothing, **limits, input_extra=extra, response_fields=[""])
        assert (await post(gateway, "/infill", asked)).json == {}
        assert len(setup.engine.requests) == before + 1
        told = (await post(gateway, "/infill", {**asked, "input_prefix": "a", "response_fields": None})).json
        assert (told["content"], told["tokens_predicted"], told["stop_type"]) == ("", 0, "limit")
        assert (await post(gateway, "/infill", {**asked, "input_extra": []})).json == {"content": "", "stop": True}

    async def test_it_ends_after_the_time_once_there_is_a_line_break(self, setup, gateway: Gateway) -> None:
        setup.engine.scripts["slow <> "] = [" a", "\n", *[" b"] * 400]
        setup.engine.aborted.clear()
        setup.engine.slow(0.02)
        try:
            asked = by_llama_vim(input_prefix="slow", prompt="", input_suffix="", n_predict=400, t_max_predict_ms=30)
            told = (await post(gateway, "/infill", asked)).json
        finally:
            setup.engine.slow(0)
        assert told["content"].startswith(" a\n")
        assert told["timings/predicted_n"] < 400
        assert await asyncio.to_thread(setup.engine.aborted.wait, 30)

    async def test_it_ends_before_a_line_with_less_indentation(self, setup, gateway: Gateway) -> None:
        setup.engine.scripts["deep <> "] = ["pass\n", "    x", "\n", "  y", "\n", "    z"]
        asked = by_llama_vim(input_prefix="deep", prompt="", input_suffix="", n_indent=4)
        assert (await post(gateway, "/infill", asked)).json["content"] == "pass\n    x\n  "

    @pytest.mark.parametrize(
        ("text", "n_indent", "place"),
        [
            ("a\n  b", 2, None),
            ("a\n b", 2, 3),
            ("a\n\n  b", 2, 2),
            ("a\n ", 2, None),
            ("a\nb", 0, None),
            ("  a", 4, None),
        ],
    )
    async def test_where_a_line_has_less_indentation(self, text: str, n_indent: int, place: int | None) -> None:
        assert outdented(text, n_indent) == place


class TestCompletion:
    async def test_tabby_reads_the_events_until_the_one_that_stops(self, gateway: Gateway) -> None:
        """As crates/http-api-bindings/src/completion/llama.rs does."""
        asked = {"seed": 1, "prompt": "a b", "n_predict": 3, "temperature": 0.1, "stream": True}
        answer = await post(gateway, "/completion", asked | {"penalty_last_n": 0, "presence_penalty": 0.0})
        assert answer.headers["content-type"].startswith("text/event-stream")
        data = [event for _, _, event in answer.events]
        assert "".join(event["content"] for event in data) == " 0 1 2"
        assert [event["stop"] for event in data] == [False] * (len(data) - 1) + [True]
        assert data[-1]["tokens_predicted"] == 3

    async def test_continue_sends_what_it_has(self, gateway: Gateway) -> None:
        """As core/llm/llms/LlamaCpp.ts does."""
        asked = {"prompt": "a", "stream": True, "n_predict": 2, "stop": ["x"], "top_k": None, "min_p": None}
        data = [event for _, _, event in (await post(gateway, "/completion", asked)).events]
        assert "".join(event["content"] for event in data) == " 0 1"

    async def test_how_it_ended(self, setup, gateway: Gateway) -> None:
        told = (await post(gateway, "/completion", {"prompt": "a", "stop": ["2"]})).json
        assert (told["content"], told["stop_type"], told["stopping_word"]) == (" 0 1", "word", "2")
        setup.engine.scripts["ends"] = ["."]
        told = (await post(gateway, "/completion", {"prompt": "ends", "seed": -1, "model": "tiny_coder"})).json
        assert (told["stop_type"], told["model"], told["tokens_evaluated"]) == ("eos", "tiny_coder", 1)

    async def test_many_prompts(self, gateway: Gateway) -> None:
        several = (await post(gateway, "/completion", {"prompt": ["a", "b c"], "n_predict": 2, "n_cmpl": 2})).json
        assert [one["index"] for one in several] == [0, 1, 2, 3]
        assert [one["tokens_evaluated"] for one in several] == [1, 1, 2, 2]

    async def test_a_gap_in_a_models_own_tokens_is_filled(self, setup, gateway: Gateway) -> None:
        setup.engine.scripts["p <> s"] = ["gap"]
        told = await post(
            gateway, "/completion", {"prompt": "<|fim_prefix|>p<|fim_suffix|>s<|fim_middle|>", "model": "tiny_coder"}
        )
        assert told.json["content"] == "gap"

    async def test_biases_in_both_forms(self, setup, gateway: Gateway) -> None:
        for biases in ([[5, 1.5], [6, False]], {"5": 1.5, "6": False}):
            await post(
                gateway, "/completion", {"prompt": "a", "n_predict": 1, "logit_bias": biases, "model": "tiny_coder"}
            )
            assert list(setup.engine.requests.values())[-1].sampling.logit_bias == {5: 1.5, 6: -100}


class TestErrors:
    @pytest.mark.parametrize(
        ("path", "fields", "named"),
        [
            ("/completion", {}, "'prompt'"),
            ("/completion", {"prompt": "a", "n_predict": "many"}, "'n_predict'"),
            ("/completion", {"prompt": "a", "grammar": "root ::= x"}, "'grammar'"),
            ("/completion", {"prompt": "a", "colour": 1}, "'colour'"),
            ("/completion", {"prompt": "a", "n_cmpl": 99}, "'n_cmpl'"),
            ("/completion", {"prompt": "a", "repeat_penalty": 99}, "'repeat_penalty'"),
            ("/completion", {"prompt": "a", "logit_bias": [[1]]}, "'logit_bias'"),
            ("/completion", {"prompt": "a", "samplers": ["best"]}, "'samplers"),
            ("/infill", {}, "'input_prefix'"),
            ("/infill", {"input_prefix": "a", "n_predict": 5000}, "'n_predict'"),
            ("/infill", {"input_extra": [{"filename": "a"}]}, "'input_extra"),
            ("/infill", {"input_prefix": "a", "input_extra": [{"filename": "a\n", "text": ""}]}, "'input_extra"),
            ("/tokenize", {}, "'content'"),
            ("/detokenize", {"tokens": "a"}, "'tokens'"),
        ],
    )
    async def test_what_cannot_be_done_is_named_in_its_form(self, gateway: Gateway, path, fields, named) -> None:
        answer = await post(gateway, path, fields)
        error = answer.error
        assert (answer.status, error["code"], error["type"]) == (400, 400, "invalid_request_error"), answer.body
        assert named in error["message"], error

    async def test_other_errors_have_its_form_too(self, gateway: Gateway) -> None:
        wrong = await post(gateway, "/infill", b"{")
        assert (wrong.status, wrong.error["type"]) == (400, "invalid_request_error")
        assert (await ask(gateway, "GET", "/infill")).error["code"] == 405
        unknown = await post(gateway, "/completion", {"prompt": "a", "model": "nope"})
        assert (unknown.status, unknown.error["type"]) == (404, "not_found_error")
        foreign = await post(gateway, "/infill", {}, host="evil.example")
        assert (foreign.status, foreign.error["type"]) == (403, "permission_error")

    async def test_a_failure_within_a_stream_is_its_last_event(self, setup, gateway: Gateway) -> None:
        failed = await post(gateway, "/completion", {"prompt": ["a", "poison"], "n_predict": 2, "stream": True})
        assert failed.events[-1][2]["error"]["code"] == 500
        assert (await post(gateway, "/completion", {"prompt": "poison"})).error["type"] == "server_error"

    async def test_a_caller_who_leaves_cancels(self, setup, gateway: Gateway) -> None:
        setup.engine.aborted.clear()
        setup.engine.hold_after(2)
        async with connection(gateway) as caller:
            body = json.dumps({"model": "tiny_coder", "prompt": "leave", "n_predict": 100, "stream": True}).encode()
            await caller.send(request("POST", "/completion", body))
            await caller.head()
            await caller.chunk()
        setup.engine.release(0.01)
        assert await asyncio.to_thread(setup.engine.aborted.wait, 30)
        setup.engine.release()


class TestServer:
    async def test_properties_are_those_of_the_default_model(self, setup, gateway: Gateway) -> None:
        listed = (await setup.ml.models.list()).models
        default = next(entry.id for entry in listed if "fim" in entry.default_for)
        props = (await ask(gateway, "GET", "/props")).json
        assert (props["model_alias"], props["default_generation_settings"]["n_ctx"]) == (default, 5000)
        assert (await ask(gateway, "GET", "/props?model=tiny_coder")).json["model_alias"] == "tiny_coder"
        assert (await ask(gateway, "GET", "/props?model=nope")).error["type"] == "not_found_error"

    async def test_health(self, gateway: Gateway) -> None:
        assert (await ask(gateway, "GET", "/health")).json == {"status": "ok"}

    async def test_health_without_a_worker(self, nats_url: str) -> None:
        async with running_gateway(nats_url) as gateway:
            answer = await ask(gateway, "GET", "/health")
            assert (answer.status, answer.error["type"]) == (503, "unavailable_error")
