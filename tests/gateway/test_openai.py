"""OpenAI's API, as the official client sees it, held against the same over NATS."""

import base64

import httpx2
import numpy as np
import openai
import pytest
import pytest_asyncio
from gateways import Gateway, ask, post
from openai import AsyncOpenAI

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(setup):
    async with AsyncOpenAI(base_url=f"{setup.gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


class TestModels:
    async def test_those_that_are_there_are_listed(self, setup, client: AsyncOpenAI) -> None:
        listed = [model async for model in client.models.list()]
        present = [entry.id for entry in (await setup.ml.models.list()).models if entry.present]
        assert [model.id for model in listed] == present
        assert (await client.models.retrieve("minilm")).owned_by == "sentence-transformers"

    async def test_one_that_is_not_is_not_found(self, client: AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as raised:
            await client.models.retrieve("nope")
        assert raised.value.code == "model_not_found"
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model="nope", input="a")


class TestEmbeddings:
    @pytest.mark.parametrize("encoding_format", ["float", "base64", openai.NOT_GIVEN])
    async def test_vectors_are_those_over_nats(self, setup, client: AsyncOpenAI, encoding_format) -> None:
        reply = await client.embeddings.create(model="minilm", input=["a", "b c"], encoding_format=encoding_format)
        over_nats = await setup.ml.embed_batch(["a", "b c"])
        for place, embedding in enumerate(reply.data):
            assert embedding.index == place
            vector = embedding.embedding
            found = (
                np.frombuffer(base64.b64decode(vector), "<f4")
                if isinstance(vector, str)
                else np.array(vector, np.float32)
            )
            assert np.array_equal(found, over_nats.embeddings[place])
        assert reply.usage.prompt_tokens == reply.usage.total_tokens == over_nats.usage.tokens

    async def test_one_text_cut_vectors_and_cut_texts(self, client: AsyncOpenAI) -> None:
        reply = await client.embeddings.create(model="minilm", input="word " * 100, dimensions=4, user="me")
        assert len(reply.data[0].embedding) == 4
        assert reply.truncated == [0]

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"input": " "}, "input"),
            ({"input": []}, "input"),
            ({"input": ["a"] * 2049}, "input"),
            ({"input": {"a": 1}}, "input"),
            ({"input": [-1]}, "input"),
            ({"input": [["a"]]}, "input"),
            ({"input": ["a", 1]}, "input"),
            ({"input": [[]]}, "input"),
            ({}, "input"),
            ({"input": "a", "dimensions": 0}, "dimensions"),
            ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
            ({"input": "a", "colour": 1}, "colour"),
        ],
    )
    async def test_what_cannot_be_done_is_named(self, gateway: Gateway, fields, named) -> None:
        answer = await post(gateway, "/v1/embeddings", fields)
        assert (answer.status, answer.error["param"], answer.error["type"]) == (400, named, "invalid_request_error")


class TestCompletions:
    async def test_a_text_is_the_one_over_nats(self, setup, client: AsyncOpenAI) -> None:
        reply = await client.completions.create(model="tiny_coder", prompt="a b", max_tokens=4, seed=1)
        over_nats = await setup.ml.generate("a b", model="tiny_coder", max_tokens=4, seed=1)
        assert reply.choices[0].text == over_nats.text
        assert reply.choices[0].finish_reason == "length"
        assert reply.system_fingerprint == over_nats.version
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, 4)

    async def test_sixteen_tokens_unless_asked_otherwise(self, client: AsyncOpenAI) -> None:
        assert (await client.completions.create(model="tiny_coder", prompt="a")).usage.completion_tokens == 16

    async def test_many_prompts_and_several_of_each(self, client: AsyncOpenAI) -> None:
        asked = {"model": "tiny_coder", "prompt": ["a", "b c"], "n": 2, "max_tokens": 2, "temperature": 1}
        reply = await client.completions.create(**asked)
        assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
        texts = dict.fromkeys(range(4), "")
        ends = {}
        async for chunk in await client.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                ends |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
        assert texts == {choice.index: choice.text for choice in reply.choices}
        assert ends == dict.fromkeys(range(4), "length")

    async def test_logprobs_echo_and_stops(self, client: AsyncOpenAI) -> None:
        reply = await client.completions.create(model="tiny_coder", prompt="a", echo=True, logprobs=2, max_tokens=2)
        scored = reply.choices[0].logprobs
        assert scored.token_logprobs == [None, -0.5, -0.5]
        assert scored.text_offset == [0, len(scored.tokens[0]), len(scored.tokens[0]) + 2]
        assert scored.top_logprobs[1] == {"t0": -1.0, "t1": -1.0}
        stopped = await client.completions.create(model="tiny_coder", prompt="a", max_tokens=9, stop=["2"])
        assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == (" 0 1", "stop")

    @pytest.mark.parametrize(
        "asked",
        [
            {"prompt": "before", "suffix": "after"},
            {"prompt": "<fim_prefix>before<fim_suffix>after<fim_middle>"},
            {"prompt": "<|fim_prefix|>before<|fim_suffix|>after<|fim_middle|>"},
            {"prompt": "<PRE> before <SUF>after <MID>"},
        ],
    )
    async def test_a_gap_is_filled(self, setup, client: AsyncOpenAI, asked) -> None:
        setup.engine.scripts["before <> after"] = [" between"]
        reply = await client.completions.create(model="tiny_coder", **asked)
        assert reply.choices[0].text == " between"

    async def test_usage_comes_last_where_it_is_wanted(self, client: AsyncOpenAI) -> None:
        stream = await client.completions.create(
            model="tiny_coder", prompt="a", max_tokens=2, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == 2
        assert len({chunk.id for chunk in chunks}) == 1


class TestChats:
    async def test_a_chat_is_answered(self, setup, client: AsyncOpenAI) -> None:
        messages = [
            {"role": "developer", "content": "short"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}]},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ]
        setup.chat.scripts["short hi\nthere 4"] = ["well", " met"]
        reply = await client.chat.completions.create(model="smollm2", messages=messages, max_completion_tokens=5)
        assert reply.choices[0].message.content == "well met"
        assert reply.choices[0].message.role == "assistant"
        assert reply.choices[0].finish_reason == "stop"

    async def test_it_streams_and_ends_in_done(self, gateway: Gateway, client: AsyncOpenAI) -> None:
        asked = {"model": "smollm2", "messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "stream": True}
        answer = await post(gateway, "/v1/chat/completions", asked)
        assert answer.events[-1][2] == "[DONE]"
        first = answer.events[0][2]
        assert first["object"] == "chat.completion.chunk"
        assert first["choices"][0]["delta"]["role"] == "assistant"
        pieces = [chunk async for chunk in await client.chat.completions.create(**asked)]
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == " 0 1 2"
        assert pieces[-1].choices[0].finish_reason == "length"

    async def test_logprobs(self, client: AsyncOpenAI) -> None:
        asked = {"model": "smollm2", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        reply = await client.chat.completions.create(**asked, logprobs=True, top_logprobs=1)
        (token,) = reply.choices[0].logprobs.content
        assert (token.token, token.logprob, token.bytes) == (" 0", -0.5, [32, 48])
        assert token.top_logprobs[0].token == "t0"

    @pytest.mark.parametrize(
        ("fields", "named"),
        [
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"top_logprobs": 1}, "top_logprobs"),
            ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
            ({"temperature": 3}, "temperature"),
            ({"temperature": "hot"}, "temperature"),
            ({"n": 99}, "n"),
            ({"logit_bias": {"x": 1}}, "logit_bias"),
            ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
            ({"messages": [{"role": "user", "content": "a", "tool_calls": []}]}, "messages"),
            ({"messages": []}, "messages"),
            ({"model": "x" * 70}, "model"),
            ({"colour": "red"}, "colour"),
        ],
    )
    async def test_what_cannot_be_done_is_named(self, gateway: Gateway, fields, named) -> None:
        asked = {"model": "smollm2", "messages": [{"role": "user", "content": "a"}], **fields}
        answer = await post(gateway, "/v1/chat/completions", asked)
        assert (answer.status, answer.error["param"]) == (400, named), answer.body

    async def test_what_means_nothing_here_is_ignored(self, gateway: Gateway) -> None:
        asked = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1, "user": "me", "store": True}
        neutral = {"metadata": {"a": "b"}, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}}
        assert (await post(gateway, "/v1/chat/completions", asked | neutral | {"stop": None})).status == 200


class TestErrors:
    async def test_a_failure_within_a_stream_is_an_event(self, client: AsyncOpenAI) -> None:
        with pytest.raises(openai.InternalServerError):
            await client.completions.create(model="tiny_coder", prompt="poison", stream=True)
        stream = await client.completions.create(model="tiny_coder", prompt=["a", "poison"], max_tokens=2, stream=True)
        with pytest.raises(openai.APIError, match="internal error"):
            _ = [chunk async for chunk in stream]

    async def test_too_much_for_the_context_is_a_bad_request(self, client: AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="context"):
            await client.completions.create(model="tiny_coder", prompt="a", max_tokens=50_000)

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"a":"\xff"}', b'{"n":1e999}', b"{" * 5000])
    async def test_a_body_that_cannot_be_read(self, gateway: Gateway, body: bytes) -> None:
        answer = await post(gateway, "/v1/completions", body)
        assert answer.status == 400
        assert answer.error["type"] == "invalid_request_error"

    async def test_unknown_paths_and_methods_in_openais_form(self, gateway: Gateway) -> None:
        assert (await ask(gateway, "GET", "/v1/nope")).error["param"] is None
        answer = await ask(gateway, "GET", "/v1/embeddings")
        assert (answer.status, answer.error["type"]) == (405, "invalid_request_error")

    async def test_a_full_worker_says_when_to_come_back_and_the_client_does(self, setup, client: AsyncOpenAI) -> None:
        """With the client's own retries."""
        statuses = []

        async def note(response: httpx2.Response) -> None:
            statuses.append(response.status_code)
            if response.status_code == 429:
                assert float(response.headers["retry-after"]) >= 1
                setup.engine.limits = limits

        limits = setup.engine.limits
        setup.engine.limits = type(limits)(max_running=limits.max_running, waiting=0)
        async with httpx2.AsyncClient(event_hooks={"response": [note]}) as transport:
            retrying = client.with_options(http_client=transport, max_retries=2)
            reply = await retrying.completions.create(model="tiny_coder", prompt="a", max_tokens=1)
        assert reply.choices[0].text == " 0"
        assert statuses == [429, 200]
