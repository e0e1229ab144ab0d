"""Real models over HTTP: vectors and texts are bit by bit those over NATS."""

from pathlib import Path

import msgpack
import numpy as np
from gateways import Gateway, post, running_gateway
from ollama import AsyncClient
from openai import AsyncOpenAI
from workers import running_worker

from service.residency.loader import ModelLoader
from service.settings import Settings
from subjects import MLClient, names

TEXTS = ["def add(a, b): return a + b", "the sum of two numbers", "naïve café 🎉"]
PROMPT = "def fib(n):"


async def test_they_answer_alike_through_every_door(nats_url: str, tmp_path: Path) -> None:
    settings = {"models": ("minilm", "tiny_coder"), "data_dir": tmp_path, "device": "cpu", "threads": 1}
    loader = ModelLoader(Settings(**settings))
    async with (
        running_worker(nats_url, loader=loader, **settings),
        await MLClient.connect(nats_url) as ml,
        running_gateway(nats_url) as gateway,
        AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client,
    ):
        vectors = np.array((await ml.embed_batch(TEXTS)).embeddings)
        native = await post(gateway, "/ml/embed/batch", msgpack.packb({"texts": TEXTS}), content_type=names.MSGPACK)
        assert b"".join(msgpack.unpackb(native.body)["embeddings"]) == vectors.tobytes()
        told = await client.embeddings.create(model="minilm", input=TEXTS)
        assert np.array_equal(np.array([one.embedding for one in told.data], np.float32), vectors)

        tokens = (await ml.tokenize(TEXTS, model="minilm")).results
        by_ids = await client.embeddings.create(model="minilm", input=[one.ids for one in tokens])
        assert np.array_equal(np.array([one.embedding for one in by_ids.data], np.float32), vectors)

        options = {"model": "tiny_coder", "max_tokens": 12, "temperature": 0}
        text = (await ml.generate(PROMPT, **options)).text
        assert (await post(gateway, "/ml/generate", {"prompt": PROMPT, **options})).json["text"] == text
        assert (await client.completions.create(prompt=PROMPT, **options)).choices[0].text == text
        ids = (await ml.tokenize(PROMPT, model="tiny_coder")).results[0].ids
        assert (await client.completions.create(prompt=ids, **options)).choices[0].text == text
        assert (await client.completions.create(prompt=[ids, ids], **options)).choices[1].text == text
        pieces = [chunk async for chunk in await client.completions.create(prompt=PROMPT, stream=True, **options)]
        assert "".join(chunk.choices[0].text for chunk in pieces) == text
        gap = (await ml.generate(prefix="def add(a, b):\n    return ", suffix="\n", **options)).text
        filled = await client.completions.create(prompt="def add(a, b):\n    return ", suffix="\n", **options)
        assert filled.choices[0].text == gap
        await ask_as_editors_do(ml, gateway, vectors, text, gap)


async def ask_as_editors_do(ml: MLClient, gateway: Gateway, vectors: np.ndarray, text: str, gap: str) -> None:
    """text, gap: what the model makes of the prompt, and of the gap."""
    assert np.array_equal(np.array((await post(gateway, "/embed", {"inputs": TEXTS})).json, np.float32), vectors)
    same = {"n_predict": 12, "temperature": 0, "model": "tiny_coder"}
    assert (await post(gateway, "/completion", {"prompt": PROMPT, **same})).json["content"] == text
    code = {"input_prefix": "def add(a, b):\n", "prompt": "    return ", "input_suffix": "\n"}
    assert (await post(gateway, "/infill", {**code, **same})).json["content"] == gap
    extra = {"input_extra": [{"filename": "a.py", "text": "x = 1\n" * 100}], **same}
    warmed = (await post(gateway, "/infill", {**extra, "n_predict": 0})).json
    assert (warmed["content"], warmed["tokens_cached"]) == ("", 0)
    assert (await post(gateway, "/infill", {**code, **extra})).json["tokens_cached"] > 100
    long = {"input_prefix": "x = 1\n" * 3000, "input_suffix": "y = 2  # é\n" * 3000, **same}
    assert 1900 < (await post(gateway, "/infill", long)).json["tokens_evaluated"] <= 2048 - 12
    async with AsyncClient(host=gateway.url) as client:
        assert np.array_equal(np.array((await client.embed("minilm", TEXTS)).embeddings, np.float32), vectors)
        options = {"num_predict": 12, "temperature": 0}
        assert (await client.generate("tiny_coder", PROMPT, options=options)).response == text
        loaded = await client.generate("tiny_coder", "")
        assert (loaded.response, loaded.done, loaded.done_reason) == ("", True, "load")

    (over_nats,) = (await ml.tokenize(PROMPT, model="tiny_coder", add_special_tokens=False)).results
    asked = {"content": PROMPT, "model": "tiny_coder", "add_special": False, "parse_special": True}
    assert (await post(gateway, "/tokenize", asked)).json == {"tokens": over_nats.ids}
    pieces = (await post(gateway, "/tokenize", {**asked, "with_pieces": True})).json["tokens"]
    assert "".join(token["piece"] for token in pieces) == PROMPT
    back = {"tokens": over_nats.ids, "model": "tiny_coder"}
    assert (await post(gateway, "/detokenize", back)).json == {"content": PROMPT}
    assert (await post(gateway, "/detokenize", {"tokens": []})).json == {"content": ""}
    by_ids = await post(gateway, "/completion", {"prompt": over_nats.ids, **same})
    assert (
        by_ids.json["content"]
        == (await ml.generate(over_nats.ids, model="tiny_coder", max_tokens=12, temperature=0)).text
    )
    (tokens,) = (await post(gateway, "/tokenize", {"inputs": "naïve cat"})).json
    assert [token["special"] for token in (tokens[0], tokens[-1])] == [True, True]
    word = tokens[1]
    assert "naïve cat".encode()[word["start"] : word["stop"]].decode() == "naïve"
