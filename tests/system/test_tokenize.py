"""Tokens over a real server, of a model that embeds and one that generates."""

import asyncio
import json
from collections.abc import AsyncIterator
from unittest.mock import ANY

import nats
import pytest
from generation_engines import new_engine, read
from generation_models import codellama
from nats_server import as_role
from tokenizers import Tokenizer
from workers import running_worker

from models.catalogue import load_catalogue
from models.encoders.base import Encoder
from models.generation.engine import Engine
from models.loading.loader import LoadOptions, load, load_generator
from models.weights.hub import locate
from subjects import MLClient, names
from subjects.errors import InvalidField, NotFound, TooLarge
from subjects.message import MAX_IDS
from subjects.tokenize import MAX_SHOWN_TOKENS

SPEC = load_catalogue().get("tiny_coder")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return new_engine(load_generator(SPEC, LoadOptions("cpu", "fp32")))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load(load_catalogue().get("minilm"), LoadOptions("cpu", "fp32"))


@pytest.fixture(scope="module")
def reference() -> Tokenizer:
    return Tokenizer.from_file(str(locate(SPEC) / "tokenizer.json"))


@pytest.fixture
async def ml(nats_url: str, engine: Engine, encoder: Encoder) -> AsyncIterator[MLClient]:
    async with running_worker(nats_url, encoder, engine), await MLClient.connect(nats_url) as client:
        yield client


async def test_tokens_go_there_and_back(ml, reference):
    texts = ["def f():\r\n", "", "a\0😀é"]
    reply = await ml.tokenize(texts)
    assert (reply.model, reply.counts) == ("tiny_coder", [len(reference.encode(text).ids) for text in texts])
    assert [one.ids for one in reply.results] == [reference.encode(text).ids for text in texts]
    assert reply.results[2].offsets[0] == (0, 1)
    assert (await ml.detokenize([one.ids for one in reply.results])).texts == texts
    counted = await ml.tokenize(texts, count_only=True)
    assert (counted.counts, counted.results) == (reply.counts, None)


async def test_an_embedding_model_shows_what_it_reads(ml):
    (shown,) = (await ml.tokenize("Hello tokenizing", model="minilm")).results
    assert shown.pieces == ["[CLS]", "hello", "token", "##izing", "[SEP]"]
    assert shown.offsets == [(0, 0), (0, 5), (6, 11), (11, 16), (0, 0)]
    assert shown.special == [0, 4]
    assert len(shown.ids) == (await ml.embed("Hello tokenizing", model="minilm")).usage.tokens
    bare = await ml.tokenize("Hello tokenizing", model="minilm", add_special_tokens=False)
    assert bare.counts == [3]
    assert (await ml.detokenize(shown.ids, model="minilm")).texts == ["hello tokenizing"]
    named = await ml.detokenize(shown.ids, model="minilm", skip_special_tokens=False)
    assert named.texts == ["[CLS] hello tokenizing [SEP]"]


async def test_the_tokens_of_a_chat_are_counted_as_its_prompt(nats_url, encoder):
    chat = [{"role": "user", "content": "what is [INST] here?"}]
    entry = {"random": {"kind": "generation", "folder": str(codellama())}}
    async with (
        running_worker(nats_url, encoder, new_engine(read(codellama())), catalogue=entry),
        await MLClient.connect(nats_url) as ml,
    ):
        (shown,) = (await ml.tokenize(messages=chat, model="random")).results
        answer = await ml.generate(messages=chat, model="random", max_tokens=1)
    assert len(shown.ids) == answer.usage.prompt_tokens
    assert shown.offsets is None


async def test_a_shell_asks_with_the_text_itself(ml, nats_url, reference):
    nc = await nats.connect(nats_url)
    reply = json.loads((await nc.request(names.TOKENIZE, b"def f():", timeout=10)).data)
    assert reply["results"][0]["ids"] == reference.encode("def f():").ids
    await nc.close()


async def test_a_long_text_comes_whole_and_holds_nobody_up(secured_server, engine, encoder, reference):
    text = "def f(n):\n    return n + 1\n" * 37_000
    async with (
        running_worker(as_role(secured_server, "worker"), encoder, engine),
        await MLClient.connect(secured_server.url) as ml,
    ):
        long = asyncio.create_task(ml.tokenize(text))
        assert (await ml.tokenize("a", count_only=True)).counts == [1]
        assert not long.done()
        (shown,) = (await long).results
        some = shown.ids[:MAX_IDS]
        assert (await ml.detokenize(some)).texts == [reference.decode(some)]
    assert shown.ids == reference.encode(text).ids
    assert shown.offsets[-1] == (len(text) - 1, len(text))


async def test_more_tokens_than_fit_are_counted_only(ml):
    texts = ["0 " * 90_000] * 4
    with pytest.raises(TooLarge, match=f"more than {MAX_SHOWN_TOKENS} tokens; send less, or 'count_only'"):
        await ml.tokenize(texts, timeout_s=60)
    counts = (await ml.tokenize(texts, count_only=True)).counts
    assert sum(counts) > MAX_SHOWN_TOKENS
    long = (await ml.tokenize(" " * 16)).results[0].ids[0]
    with pytest.raises(TooLarge, match="the texts pass the"):
        await ml.detokenize([[long] * 80_000] * 3)


async def test_what_the_model_does_not_take_is_said(ml):
    for call, error, message in [
        (ml.tokenize("a", model="poem"), NotFound, "unknown model"),
        (ml.tokenize(messages=[{"role": "user", "content": "a"}], model="minilm"), InvalidField, "gives vectors"),
        (ml.tokenize(messages=[{"role": "user", "content": "a"}], model="tiny_coder"), InvalidField, "chat template"),
        (ml.tokenize("a", task="query"), InvalidField, "is for models that embed"),
        (ml.tokenize("a", model="minilm", prompt_name="poem"), InvalidField, "prompt"),
        (ml.detokenize([1, 4096]), InvalidField, "'tokens': token id 4096 at place 1 does not exist"),
        (ml.detokenize([[1], [-1]]), InvalidField, "tokens.1.0"),
        (ml.detokenize([30522], model="minilm"), InvalidField, "ids are 0 to 30521"),
    ]:
        with pytest.raises(error, match=message):
            await call


@pytest.mark.parametrize("text", ["Hello tokenizing 😀", "word " * 400])
@pytest.mark.parametrize("truncate", ["end", "start"])
async def test_ids_give_the_vector_of_their_text(ml, text, truncate):
    (shown,) = (await ml.tokenize(text, model="minilm")).results
    expected = await ml.embed(text, truncate=truncate)
    found = await ml.embed(shown.ids, truncate=truncate)
    assert found.embedding.tobytes() == expected.embedding.tobytes()
    assert (found.usage, found.truncated) == (expected.usage, expected.truncated)
    batch = await ml.embed_batch([shown.ids, [101, 7592, 102]], truncate=truncate)
    texts = await ml.embed_batch([text, "hello"], truncate=truncate)
    assert batch.embeddings[0].tobytes() == texts.embeddings[0].tobytes()
    assert batch.truncated == texts.truncated


async def test_ids_are_completed_as_their_text(ml):
    ids = [one.ids for one in (await ml.tokenize(["def f(n):", "import "])).results]
    greedy = {"max_tokens": 8, "temperature": 0, "echo": True, "logprobs": 1}
    expected = await ml.generate("def f(n):", **greedy)
    assert await ml.generate(ids[0], **greedy) == expected.model_copy(update={"usage": ANY, "seed": ANY})
    batch = await ml.generate_batch([*ids, [4096]], **greedy)
    texts = await ml.generate_batch(["def f(n):", "import "], **greedy)
    assert [one.text for one in batch.results[:2]] == [one.text for one in texts.results]
    assert (
        batch.results[2].error.message
        == "field 'tokens': token id 4096 at place 0 does not exist; the model's ids are 0 to 4095"
    )


async def test_ids_may_hold_special_tokens(ml, reference):
    prefix, suffix, middle = (reference.token_to_id(f"<fim_{part}>") for part in ("prefix", "suffix", "middle"))
    before, after = reference.encode("def add(a, b):\n    return ").ids, reference.encode("\n").ids
    expected = await ml.generate(prefix="def add(a, b):\n    return ", suffix="\n", max_tokens=8, temperature=0)
    found = await ml.generate([prefix, *before, suffix, *after, middle], max_tokens=8, temperature=0)
    assert (found.text, found.usage.prompt_tokens) == (expected.text, expected.usage.prompt_tokens)
    assert (await ml.generate([middle], echo=True, max_tokens=0)).text == "<fim_middle>"


async def test_ids_that_cannot_be_read_are_refused(ml):
    for call, error, message in [
        (ml.embed([101, 30522]), InvalidField, "field 'tokens': token id 30522 at place 1"),
        (ml.embed([]), InvalidField, "tokens"),
        (ml.embed([101], prompt=""), InvalidField, "'tokens' hold theirs"),
        (ml.embed([101] * 300, truncate="error"), TooLarge, "300 tokens"),
        (ml.embed_batch([[101], [102, 30522]]), InvalidField, "field 'tokens.1': token id 30522 at place 1"),
        (ml.embed_batch([[101], "text"]), InvalidField, "tokens.1"),
        (ml.generate([4096]), InvalidField, "token id 4096 at place 0"),
        (ml.generate([]), InvalidField, "tokens"),
        (ml.generate([1] * 20_000), TooLarge, "the prompt has 20000 tokens"),
        (ml.generate([True]), InvalidField, "tokens.0"),
    ]:
        with pytest.raises(error, match=message):
            await call
