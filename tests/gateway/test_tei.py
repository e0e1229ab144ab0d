"""text-embeddings-inference's API, asked as Continue asks, held against the same over NATS."""

import numpy as np
import pytest
from gateways import Gateway, ask, post

pytestmark = pytest.mark.asyncio(loop_scope="module")


class TestEmbed:
    async def test_vectors_are_those_over_nats(self, setup, gateway: Gateway) -> None:
        """Continue's core/llm/llms/HuggingFaceTEI.ts sends a list of texts alone."""
        answer = await post(gateway, "/embed", {"inputs": ["a", "b c"]})
        over_nats = await setup.ml.embed_batch(["a", "b c"])
        assert np.array_equal(np.array(answer.json, np.float32), np.array(over_nats.embeddings))
        one = (await post(gateway, "/embed", {"inputs": "a", "truncate": True, "prompt_name": None})).json
        assert one == answer.json[:1]

    async def test_options(self, setup, gateway: Gateway) -> None:
        asked = {"inputs": ["a b"], "normalize": False, "prompt_name": "query", "dimensions": 4}
        vector = (await post(gateway, "/embed", asked)).json[0]
        over_nats = await setup.ml.embed("a b", normalize=False, prompt_name="query", dimensions=4)
        assert np.array_equal(np.array(vector, np.float32), over_nats.embedding)
        long = "first " + "word " * 100 + "last"
        left = (await post(gateway, "/embed", {"inputs": long, "truncation_direction": "Left"})).json[0]
        assert np.array_equal(np.array(left, np.float32), (await setup.ml.embed(long, truncate="start")).embedding)
        refused = await post(gateway, "/embed", {"inputs": long, "truncate": False})
        assert (refused.status, refused.json["error_type"]) == (413, "Validation")


async def test_similarity_in_the_order_of_the_sentences(setup, gateway: Gateway) -> None:
    sentences = ["a b", "c", "a"]
    asked = {"inputs": {"source_sentence": "a", "sentences": sentences}, "parameters": {"truncate": True}}
    scores = (await post(gateway, "/similarity", asked)).json
    ranking = await setup.ml.rank("a", sentences)
    assert scores == [one.score for one in sorted(ranking.results, key=lambda one: one.index)]


async def test_info_has_what_continue_reads(gateway: Gateway) -> None:
    info = (await ask(gateway, "GET", "/info")).json
    assert info["model_id"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert (info["max_client_batch_size"], info["max_input_length"]) == (2048, 64)


@pytest.mark.parametrize(
    ("path", "fields", "status", "named"),
    [
        ("/embed", {}, 422, "'inputs'"),
        ("/embed", {"inputs": []}, 422, "'inputs'"),
        ("/embed", {"inputs": [" "]}, 422, "'inputs"),
        ("/embed", {"inputs": "a", "colour": 1}, 422, "'colour'"),
        ("/embed", {"inputs": "a", "prompt_name": "nope"}, 422, "'nope'"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, 422, "sentences'"),
        ("/tokenize", {"inputs": "a", "colour": 1}, 422, "'colour'"),
        ("/tokenize", {"inputs": []}, 422, "'inputs'"),
        ("/embed", b"[", 422, "JSON"),
    ],
)
async def test_what_cannot_be_done_is_named_in_its_form(gateway: Gateway, path, fields, status, named) -> None:
    answer = await post(gateway, path, fields)
    assert (answer.status, answer.json["error_type"]) == (status, "Validation"), answer.body
    assert named in answer.json["error"], answer.json


async def test_other_errors_have_its_form_too(gateway: Gateway) -> None:
    assert (await post(gateway, "/embed", {"inputs": "poison"})).json["error_type"] == "Backend"
    assert (await post(gateway, "/embed", {"inputs": "a", "model": "nope"})).status == 404
