"""Vectors that come over the bus, whatever they were batched with, against sentence-transformers' own encode.

Tolerance: cosine >= 0.99999 in fp32.
"""

import asyncio
import inspect
import json
import random
import textwrap

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from workers import running_worker

from models.catalogue import load_catalogue
from models.encoders.base import cosine_rows
from models.loading.loader import LoadOptions, load
from models.weights.hub import locate
from subjects import MLClient

SOURCES = [inspect.getsource(module) for module in (textwrap, json, random)]


@pytest.fixture(scope="module")
def minilm():
    return load_catalogue().get("minilm")


def snippets(count: int) -> list[str]:
    """Texts of very mixed length, the same each time: from one word to past the model's 256 tokens."""
    rng = random.Random(7)
    texts = []
    for _ in range(count):
        source = rng.choice(SOURCES)
        start = rng.randrange(len(source) - 10)
        texts.append(source[start : start + rng.choice([5, 30, 120, 400, 1800])].strip() or "x")
    return texts


@pytest.mark.slow
async def test_vectors_over_the_bus_equal_the_reference(nats_url, minilm):
    texts = snippets(160)
    expected = SentenceTransformer(str(locate(minilm)), device="cpu").encode(texts, convert_to_numpy=True)
    encoder = await asyncio.to_thread(load, minilm, LoadOptions("cpu", "fp32"))
    async with running_worker(nats_url, encoder), await MLClient.connect(nats_url, timeout_s=100) as ml:
        single = await asyncio.gather(*(ml.embed(text) for text in texts))
        batch = await ml.embed_batch(texts[::-1])
    vectors = np.stack([reply.embedding for reply in single])
    assert cosine_rows(vectors, expected).min() >= 0.99999
    assert cosine_rows(np.stack(batch.embeddings), expected[::-1]).min() >= 0.99999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert {reply.version for reply in single} == {"53aa51172d14-fp32"}
    assert any(reply.truncated for reply in single)
