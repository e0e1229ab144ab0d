"""The catalogue: its seven entries, the user's own, and what is refused."""

import pytest
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from models.catalogue import FORMS, load_catalogue
from models.errors import BadEntry, UnknownModel

SHIPPED = ["qodo", "jina_v3", "minilm", "codellama_7b", "starcoder_1b", "tiny_coder", "smollm2"]


def test_the_entries_in_order() -> None:
    catalogue = load_catalogue()
    assert [spec.id for spec in catalogue] == SHIPPED
    assert len(catalogue.specs) == 7


def test_every_entry_states_its_licence() -> None:
    assert all(spec.licence and spec.commercial is not None for spec in load_catalogue())


def test_facts_that_the_service_relies_on() -> None:
    catalogue = load_catalogue()
    assert catalogue.get("minilm").dimensions == 384
    assert not catalogue.get("jina_v3").commercial
    assert (catalogue.get("qodo").causal, catalogue.get("qodo").append_eos) == (False, True)
    recommended = {spec.recommended_for: spec.id for spec in catalogue if spec.recommended_for}
    assert recommended == {
        "code": "qodo",
        "general": "jina_v3",
        "production": "codellama_7b",
        "dev": "starcoder_1b",
    }
    assert {form: catalogue.default(form).id for form in FORMS} == {
        "embedding": "minilm",
        "prompt": "smollm2",
        "messages": "smollm2",
        "fim": "tiny_coder",
    }


def test_another_default_replaces_one_that_is_not_available() -> None:
    catalogue = load_catalogue()
    assert catalogue.default("prompt", without="smollm2").id == "tiny_coder"
    assert catalogue.default("messages", without="smollm2") is None


def test_a_users_own_default_is_loaded_and_served() -> None:
    own = load_catalogue({"own": {"kind": "generation", "folder": "x", "default": True}})
    assert (load_catalogue().usual(), own.usual()) == (["minilm", "smollm2"], ["minilm", "own"])
    assert set(own.defaults().values()) == {"minilm", "own"}
    assert own.defaults(["codellama_7b"])["messages"] == "codellama_7b"


def test_a_form_that_no_model_takes_has_no_default() -> None:
    without = load_catalogue({"smollm2": {"default": False}, "tiny_coder": {"default": False}})
    assert without.defaults() == {"embedding": "minilm"}
    assert without.usual() == ["minilm"]


def test_a_users_own_default_serves_every_form_that_it_takes() -> None:
    own = {"kind": "generation", "folder": "x", "default": True}
    assert {load_catalogue({"own": own}).default(form).id for form in ("prompt", "messages", "fim")} == {"own"}
    plain = load_catalogue({"own": own | {"forms": ["prompt"]}})
    assert [plain.default(form).id for form in ("prompt", "messages", "fim")] == ["own", "smollm2", "tiny_coder"]


def test_the_error_for_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(UnknownModel) as caught:
        load_catalogue().get("gpt")
    assert caught.value.known == tuple(SHIPPED)
    assert "minilm" in str(caught.value)


def test_own_entries_add_to_the_shipped_ones_or_replace_them() -> None:
    catalogue = load_catalogue(
        {
            "mine": {"kind": "embedding", "folder": "weights/mine", "default": True},
            "minilm": {"kind": "embedding", "repository": "me/minilm", "revision": "v2"},
        }
    )
    assert len(catalogue.specs) == 8
    assert catalogue.default("embedding").id == "mine"
    assert catalogue.get("minilm").repository == "me/minilm"
    assert catalogue.get("minilm").sha256 == {}


def test_an_entry_without_a_source_changes_the_shipped_one() -> None:
    changed = load_catalogue({"qodo": {"quantization": "int8", "min_cosine": 0.99}}).get("qodo")
    shipped = load_catalogue().get("qodo")
    assert changed == shipped.model_copy(update={"quantization": "int8", "min_cosine": 0.99})


def test_names_of_repositories_are_those_of_the_hub() -> None:
    names = ["a/b", "me/mine", "Qodo/Qodo-Embed-1-1.5B", "_a/b_", "me/..", "me/.b", "-a/b", "a/b-", "a/b.git", "a/é"]
    names += ["a/b/c", "a", "a--b/c", "a/b..c", "a/" + "b" * 96, "a/" + "b" * 97, "a/b\n", ""]
    for name in names:
        try:
            validate_repo_id(name)
            allowed = name.count("/") == 1  # the Hub has some without an owner, which are aliases
        except HFValidationError:
            allowed = False
        given = {"mine": {"kind": "embedding", "repository": name}}
        if allowed:
            assert load_catalogue(given).get("mine").repository == name
        else:
            with pytest.raises(BadEntry, match="repository"):
                load_catalogue(given)


def test_a_pinned_digest_may_be_written_in_either_case() -> None:
    given = {"mine": {"kind": "embedding", "folder": "x", "sha256": {"a": "AB" * 32}}}
    assert load_catalogue(given).get("mine").sha256 == {"a": "ab" * 32}


@pytest.mark.parametrize(
    ("model", "fields", "word"),
    [
        ("mine", {"kind": "embedding", "folder": "x", "default_task": "poetry"}, "default_task"),
        ("mine", {"kind": "embedding", "folder": "x", "served_by": "onnx", "quantization": "int8"}, "quantization"),
        ("mine", {"kind": "embedding", "folder": "x", "onnx_files": {}}, "onnx_files"),
        ("mine", {"quantization": "int8"}, "kind"),
        ("mine", {"kind": "embedding"}, "folder"),
        ("mine", {"kind": "embedding", "folder": "x", "colour": "red"}, "colour"),
        ("mine", {"kind": "poetry", "folder": "x"}, "kind"),
        ("mine", {"folder": "x"}, "kind"),
        ("mine", {"kind": "embedding", "repository": "no-owner"}, "repository"),
        ("mine", {"kind": "embedding", "repository": "me/.."}, "OWNER/NAME"),
        ("mine", {"kind": "embedding", "repository": "me/a--b"}, "OWNER/NAME"),
        ("mine", {"kind": "embedding", "repository": "me/mine.git"}, "OWNER/NAME"),
        ("mine", {"kind": "embedding", "repository": "me/mine", "revision": "../.."}, "revision"),
        ("mine", {"kind": "embedding", "folder": "x", "sha256": {"model.safetensors": "abc"}}, "sha256"),
        ("mine", {"kind": "embedding", "folder": "x", "tasks": {"query": -1}}, "tasks"),
        ("mine", {"kind": "embedding", "folder": "x", "matryoshka": [0, -3]}, "matryoshka"),
        ("mine", {"kind": "embedding", "folder": "x", "matryoshka": [4, 99], "dimensions": 16}, "99"),
        ("mine", {"kind": "embedding", "folder": "x", "dimensions": 0}, "dimensions"),
        ("mine", {"kind": "generation", "folder": "x", "served_by": "onnx"}, "served_by"),
        ("mine", {"kind": "generation", "folder": "x", "min_cosine": 0.9}, "min_cosine is for embedding models"),
        ("mine", {"kind": "generation", "folder": "x", "pooling": "mean"}, "pooling"),
        ("mine", {"kind": "embedding", "folder": "x", "kv_gb": 1.0}, "kv_gb is for generation models"),
        ("mine", {"kind": "embedding", "folder": "x", "gguf": "a.gguf"}, "gguf is for generation models"),
        ("mine", {"kind": "generation", "folder": "x", "gguf": "../a.gguf"}, "gguf"),
        ("mine", {"kind": "generation", "folder": "x", "forms": ["poem"]}, "forms"),
        ("mine", {"kind": "generation", "folder": "x", "sampling": {"temperature": 3.0}}, "sampling.temperature"),
        ("mine", {"kind": "generation", "folder": "x", "sampling": {"heat": 1.0}}, "sampling.heat"),
        ("mine", {"kind": "generation", "folder": "x", "recommended_for": "code"}, "production, dev"),
        ("mine", {"kind": "embedding", "folder": "x", "recommended_for": "dev"}, "code, general"),
        ("mine.too", {"kind": "embedding", "folder": "x"}, "id"),
    ],
)
def test_a_bad_entry_is_refused_by_name(model: str, fields: dict[str, object], word: str) -> None:
    with pytest.raises(BadEntry) as caught:
        load_catalogue({model: fields})
    assert caught.value.model == model
    assert word in caught.value.reason
