"""A gap with files of its repository, over a real server and with a real model."""

import pytest
from generation_engines import new_engine
from tokenizers import Tokenizer
from workers import running_worker

from models.catalogue import load_catalogue
from models.generation.engine import Engine
from models.loading.loader import LoadOptions, load_generator
from models.weights.hub import locate
from subjects import MLClient
from subjects.errors import TooLarge

SPEC = load_catalogue().get("tiny_coder")
GAP = {"prefix": "def area(r):\n    return ", "suffix": "\n"}
UTIL = {"path": "shapes/util.py", "text": "PI = 3.14\n\n\ndef square(x):\n    return x * x\n"}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return new_engine(load_generator(SPEC, LoadOptions("cpu", "fp32")), cache_tokens=2048)


async def test_files_of_the_repository_are_read_before_the_gap(nats_url, engine):
    tokenizer = Tokenizer.from_file(str(locate(SPEC) / "tokenizer.json"))
    text = f"<fim_prefix># shapes/util.py\n{UTIL['text']}\n# shapes/area.py\n{GAP['prefix']}<fim_suffix>\n<fim_middle>"
    async with running_worker(nats_url, engine, models=("tiny_coder",)), await MLClient.connect(nats_url) as ml:
        found = await ml.generate(**GAP, context=[UTIL], path="shapes/area.py", max_tokens=12, temperature=0)
        expected = await ml.generate(tokenizer.encode(text).ids, max_tokens=12, temperature=0)
    assert (found.text, found.usage.prompt_tokens) == (expected.text, expected.usage.prompt_tokens)
    assert (found.context_files, expected.context_files) == (1, None)


async def test_a_large_context_is_cut_to_what_the_model_reads(nats_url, engine):
    files = [{"path": f"f{n}.py", "text": f"x{n} = {n}\n" * 2000} for n in range(40)]
    greedy = {"temperature": 0, "repetition_penalty": 1.0}
    async with running_worker(nats_url, engine, models=("tiny_coder",)), await MLClient.connect(nats_url) as ml:
        for beams in (1, 2):
            reply = await ml.generate(**GAP, context=files, max_tokens=20, num_beams=beams, **greedy)
            limit = min(engine.facts.max_tokens, 2048 // beams)
            assert reply.context_files == 1
            assert limit - 60 < reply.usage.prompt_tokens <= limit - 20
        alone = await ml.generate(**GAP, max_tokens=20)
        with pytest.raises(TooLarge, match="passes the"):
            await ml.generate(**GAP, context=files, max_tokens=5000)
        long = {"prefix": "x = 1\n" * 5000, "suffix": ""}
        with pytest.raises(TooLarge, match="the prompt has"):
            await ml.generate(**long, context=files, max_tokens=1)
    assert alone.usage.prompt_tokens < 60
