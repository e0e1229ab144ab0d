"""Ollama's API, as its own client sees it and as Zed, Continue and Roo ask, held against the same over NATS."""

import json

import numpy as np
import ollama
import pytest
import pytest_asyncio
from gateways import Gateway, ask, post
from ollama import AsyncClient

pytestmark = pytest.mark.asyncio(loop_scope="module")

ZED_STOPS = ["<|endoftext|>", "<|file_separator|>", "<|fim_pad|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
ZED_STOPS += ["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<PRE>", "<SUF>", "<MID>", "[PREFIX]", "[SUFFIX]"]
CHAT = [{"role": "system", "content": "short"}, {"role": "user", "content": "hi"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(setup):
    async with AsyncClient(host=setup.gateway.url) as client:
        yield client


def lines_of(body: bytes):
    return [json.loads(line) for line in body.splitlines()]


class TestGenerate:
    async def test_a_text_is_the_one_over_nats(self, setup, client: AsyncClient) -> None:
        options = {"seed": 3, "temperature": 0.5, "num_predict": 4, "repeat_penalty": 1.2, "num_ctx": 4096}
        reply = await client.generate("tiny_coder", "a b", options=options, keep_alive="5m")
        same = {"seed": 3, "temperature": 0.5, "max_tokens": 4, "repetition_penalty": 1.2}
        assert reply.response == (await setup.ml.generate("a b", model="tiny_coder", **same)).text
        assert (reply.done, reply.done_reason, reply.prompt_eval_count, reply.eval_count) == (True, "length", 2, 4)
        first, second = list(setup.engine.requests.values())[-2:]
        assert first.sampling == second.sampling
        assert reply.total_duration >= reply.eval_duration >= 0

    async def test_it_streams_lines_unless_told_otherwise(self, gateway: Gateway, client: AsyncClient) -> None:
        asked = {"model": "tiny_coder:latest", "prompt": "a", "options": {"num_predict": 3}}
        answer = await post(gateway, "/api/generate", asked)
        assert answer.headers["content-type"] == "application/x-ndjson"
        told = lines_of(answer.body)
        assert [line["done"] for line in told] == [False] * (len(told) - 1) + [True]
        pieces = [piece async for piece in await client.generate(**asked, stream=True)]
        assert "".join(piece.response for piece in pieces) == " 0 1 2"
        assert pieces[-1].done_reason == "length"

    async def test_a_model_that_chats_takes_the_prompt_as_a_chat_unless_raw(self, setup, client: AsyncClient) -> None:
        setup.chat.scripts["be brief hi"] = ["hello"]
        setup.chat.scripts["hi"] = [" there"]
        assert (await client.generate("smollm2", "hi", system="be brief")).response == "hello"
        assert (await client.generate("smollm2", "hi", raw=True)).response == " there"

    async def test_a_gap_is_filled(self, setup, client: AsyncClient) -> None:
        setup.engine.scripts["before <> after"] = [" between"]
        assert (await client.generate("tiny_coder", "before", suffix="after")).response == " between"

    async def test_zed_sends_a_models_own_tokens(self, setup, gateway: Gateway) -> None:
        """As crates/edit_prediction/src/fim.rs does, for a model whose name it does not know."""
        setup.engine.scripts["before <> after"] = [" between"]
        asked = {
            "model": "tiny_coder",
            "prompt": "<fim_prefix>before<fim_suffix>after<fim_middle>",
            "raw": True,
            "stream": False,
            "options": {"num_predict": 64, "temperature": 0.2, "stop": ZED_STOPS},
        }
        assert (await post(gateway, "/api/generate", asked)).json["response"] == " between"

    async def test_continue_asks_as_it_does(self, setup, gateway: Gateway) -> None:
        """core/llm/llms/Ollama.ts: for the model's template first, then with the text behind the gap."""
        shown = (await post(gateway, "/api/show", {"name": "tiny_coder"})).json
        assert ".Suffix" in shown["template"]
        assert ".Suffix" not in (await post(gateway, "/api/show", {"name": "smollm2"})).json["template"]
        setup.engine.scripts["before <> after"] = [" between"]
        options = {
            "temperature": 0.01,
            "num_predict": 9,
            "stop": ["x"],
            "num_ctx": 4096,
            "num_thread": 2,
            "min_p": None,
        }
        asked = {"model": "tiny_coder", "prompt": "before", "suffix": "after", "raw": False, "options": options}
        told = lines_of((await post(gateway, "/api/generate", asked | {"keep_alive": 1800, "stream": True})).body)
        assert "".join(line["response"] for line in told) == " between"


class TestChat:
    async def test_a_chat_is_answered(self, setup, client: AsyncClient) -> None:
        setup.chat.scripts["short hi"] = ["well", " met"]
        reply = await client.chat("smollm2", CHAT)
        assert (reply.message.role, reply.message.content, reply.done_reason) == ("assistant", "well met", "stop")
        assert reply.message.content == (await setup.ml.generate(messages=CHAT, model="smollm2")).text

    async def test_zed_and_roo_stream_it(self, setup, gateway: Gateway, client: AsyncClient) -> None:
        setup.chat.scripts["short hi"] = ["well", " met"]
        by_zed = {
            "model": "smollm2",
            "messages": [*CHAT[:1], {**CHAT[1], "images": None}],
            "stream": True,
            "keep_alive": -1,
            "options": {"num_ctx": 16384, "num_predict": -1, "stop": [], "temperature": 1.0, "top_p": None},
            "tools": [],
            "think": None,
        }
        told = lines_of((await post(gateway, "/api/chat", by_zed)).body)
        assert "".join(line["message"]["content"] for line in told) == "well met"
        assert all({"model", "created_at", "message", "done"} <= line.keys() for line in told)
        stream = await client.chat("smollm2", CHAT, stream=True, options={"temperature": 0, "num_ctx": 8192})
        assert "".join([chunk.message.content async for chunk in stream]) == "well met"

    async def test_turns_of_earlier_answers_are_read(self, setup, gateway: Gateway) -> None:
        setup.chat.scripts["hi yes and"] = ["ok"]
        turns = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "yes", "tool_calls": None, "thinking": "hm", "images": []},
            {"role": "user", "content": "and"},
        ]
        asked = {"model": "smollm2", "messages": turns, "stream": False}
        assert (await post(gateway, "/api/chat", asked)).json["message"]["content"] == "ok"


class TestEmbed:
    async def test_vectors_are_those_over_nats(self, setup, client: AsyncClient) -> None:
        reply = await client.embed("minilm", ["a", "b c"], truncate=True, options={"num_ctx": 512}, keep_alive=0)
        over_nats = await setup.ml.embed_batch(["a", "b c"])
        assert np.array_equal(np.array(reply.embeddings, np.float32), np.array(over_nats.embeddings))
        assert reply.prompt_eval_count == over_nats.usage.tokens
        assert len((await client.embed("minilm", "a", dimensions=4)).embeddings[0]) == 4
        older = await client.embeddings("minilm", "a")
        assert np.array_equal(np.array(older.embedding, np.float32), over_nats.embeddings[0])

    async def test_a_long_text_is_cut_unless_told_otherwise(self, client: AsyncClient) -> None:
        await client.embed("minilm", "word " * 100)
        with pytest.raises(ollama.ResponseError) as raised:
            await client.embed("minilm", "word " * 100, truncate=False)
        assert raised.value.status_code == 400


class TestModels:
    async def test_those_that_are_there_are_listed_with_what_clients_want(self, setup, gateway, client) -> None:
        listed = (await ask(gateway, "GET", "/api/tags")).json["models"]
        present = [entry.id for entry in (await setup.ml.models.list()).models if entry.present]
        assert [model["name"] for model in listed] == [model.model for model in (await client.list()).models] == present
        wanted = {"name", "modified_at", "size", "digest", "details"}
        assert all(wanted <= model.keys() for model in listed)
        details = {"format", "family", "parameter_size", "quantization_level"}
        assert all(details <= model["details"].keys() for model in listed)

    async def test_details_of_one(self, client: AsyncClient) -> None:
        shown = await client.show("tiny_coder")
        assert shown.capabilities == ["completion", "insert"]
        assert shown.modelinfo["generation.context_length"] == 5000
        assert (await client.show("minilm:latest")).capabilities == ["embedding"]

    async def test_those_in_memory(self, client: AsyncClient) -> None:
        running = {model.model: model for model in (await client.ps()).models}
        assert running.keys() == {"minilm", "tiny_coder", "smollm2"}
        assert (running["tiny_coder"].context_length, running["tiny_coder"].size_vram) == (5000, 0)

    async def test_the_version_is_one_that_clients_can_compare(self, gateway: Gateway) -> None:
        version = (await ask(gateway, "GET", "/api/version")).json["version"]
        assert [part.isdigit() for part in version.split(".")] == [True] * 3


class TestErrors:
    @pytest.mark.parametrize(
        ("path", "fields", "named"),
        [
            ("/api/generate", {"prompt": "a"}, "'model'"),
            ("/api/generate", {"model": "tiny_coder", "prompt": "a", "format": "json"}, "'format'"),
            ("/api/generate", {"model": "tiny_coder", "prompt": "a", "options": {"mirostat": 1}}, "'options.mirostat'"),
            ("/api/generate", {"model": "tiny_coder", "prompt": "a", "options": {"colour": 1}}, "'options.colour'"),
            ("/api/generate", {"model": "tiny_coder", "prompt": "a", "options": {"temperature": 9}}, "'temperature'"),
            ("/api/generate", {"model": "tiny_coder", "prompt": "a", "options": 5}, "'options'"),
            ("/api/chat", {"model": "smollm2", "messages": CHAT, "tools": [{"type": "function"}]}, "'tools'"),
            ("/api/chat", {"model": "smollm2", "messages": [{**CHAT[1], "images": ["aGk="]}]}, "'messages.0.images'"),
            ("/api/chat", {"model": "smollm2", "messages": [{"role": "owl"}]}, "'messages.0.role'"),
            ("/api/chat", {"model": "tiny_coder", "messages": CHAT}, "'messages'"),
            ("/api/embed", {"model": "minilm"}, "'input'"),
            ("/api/embed", {"model": "minilm", "input": [" "]}, "'input"),
            ("/api/show", {}, "'model'"),
        ],
    )
    async def test_what_cannot_be_done_is_named_in_its_form(self, gateway: Gateway, path, fields, named) -> None:
        answer = await post(gateway, path, fields)
        assert answer.status == 400, answer.body
        assert answer.json.keys() == {"error"}
        assert named in answer.json["error"]

    async def test_an_unknown_model_is_not_found(self, gateway: Gateway, client: AsyncClient) -> None:
        for asking in (client.generate("nope", "a"), client.chat("nope", CHAT), client.show("nope")):
            with pytest.raises(ollama.ResponseError, match="nope") as raised:
                await asking
            assert raised.value.status_code == 404
        assert isinstance((await ask(gateway, "GET", "/api/nope")).json["error"], str)

    async def test_a_failure_within_a_stream_is_its_last_line(self, setup, client: AsyncClient) -> None:
        with pytest.raises(ollama.ResponseError, match="internal error"):
            await client.generate("tiny_coder", "poison")

    async def test_nobody_unloads_a_model_this_way(self, client: AsyncClient) -> None:
        with pytest.raises(ollama.ResponseError, match="administrators") as raised:
            await client.generate("tiny_coder", "", keep_alive=0)
        assert raised.value.status_code == 403
