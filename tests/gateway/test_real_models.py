"""Real models over HTTP: vectors and texts are bit by bit those over NATS."""

from pathlib import Path

import msgpack
import numpy as np
from gateways import post, running_gateway
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
