"""Folders as sentence-transformers 6 writes them for a tokeniser with a chat template, against the library itself.

The model is a tiny random Qwen3 with Qodo's tokeniser. Tolerance: cosine >= 0.99999, fp32; token ids equal.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoTokenizer, Qwen3Config, Qwen3Model

from bench.random_models import write_qodo
from models.catalogue import ModelSpec, load_catalogue
from models.encoders.base import Encoder, TextOptions, Tokens, cosine_rows
from models.encoders.modules import read_sentence_transformer
from models.errors import InvalidOption, ModelUnavailable, TextTooLong
from models.loading.loader import LoadOptions, load
from models.training.fit.export import export
from models.training.fit.texts import TrainingTexts

TURN = "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
STRUCTURED = "<|im_start|>{{ message.role }}\n{{ message.content[0].text }}<|im_end|>\n"
TEMPLATES = {
    "turns": "{% for message in messages %}" + TURN + "{% endfor %}",
    "answer": "{% for message in messages %}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}{{ ending }}",
    "parts": "{% for message in messages %}" + STRUCTURED + "{% endfor %}<|endoftext|>",
    "trimmed": "{% for message in messages %}<|im_start|>{{ message.content | trim }}{% endfor %}",
    "alone": "{% for message in messages %}{% if message.role == 'system' %}"
    "{{ raise_exception('no system turn') }}{% endif %}{{ message.content }}{% endfor %}<|endoftext|>",
}
ASKED = {"answer": {"chat_template": {"add_generation_prompt": True, "ending": "that is all"}}}
PLAIN = TextOptions()
TEXTS = ["def hello(): pass", "", "\n\nx \n", "a b c d e f g h i j " * 20, "Zürich <|im_end|>\n<|im_start|>, 東京"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3 and a tokeniser, without a template."""
    folder = tmp_path_factory.mktemp("backbone")
    tokenizer = AutoTokenizer.from_pretrained(write_qodo(tmp_path_factory.mktemp("qodo")))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    Qwen3Model(Qwen3Config(vocab_size=len(tokenizer), **sizes, **heads)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def of(folder: Path, **fields: Any) -> ModelSpec:
    return load_catalogue({"mine": {"kind": "embedding", "folder": str(folder), **fields}}).get("mine")


def saved(backbone: Path, folder: Path, template: str = "turns", **options: Any) -> SentenceTransformer:
    """The model with a chat template, as the library writes it and reads it back."""
    transformer = Transformer(str(backbone), max_seq_length=48)
    transformer.processor.chat_template = TEMPLATES[template]
    transformer.processor.save_pretrained(folder / "template")
    transformer.model.save_pretrained(folder / "template")
    arguments = {"processing_kwargs": ASKED.get(template), **options}
    modules = [
        Transformer(str(folder / "template"), max_seq_length=48, **arguments),
        Pooling(32, "lasttoken"),
        Normalize(),
    ]
    prompts = {"query": "Find code that does it.", "document": ""}
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts).save(
        str(folder / "model"), create_model_card=False
    )
    return SentenceTransformer(str(folder / "model"), device="cpu")


def tokens_of(encoder: Encoder, texts: list[str], options: TextOptions = PLAIN) -> list[Tokens]:
    return [item for item in encoder.tokenize(texts, options) if isinstance(item, Tokens)]


@pytest.mark.parametrize("template", TEMPLATES)
def test_texts_go_through_the_chat_template_as_in_the_library(backbone: Path, tmp_path: Path, template: str) -> None:
    peer = saved(backbone, tmp_path, template)
    stated = json.loads((tmp_path / "model" / "sentence_bert_config.json").read_text())
    assert "message" in stated["modality_config"]
    encoder = load(of(tmp_path / "model"), LoadOptions("cpu", "fp32"))
    for prompt in ("", "Find code that does it.") if template != "alone" else ("",):
        tokens = tokens_of(encoder, TEXTS, TextOptions(prompt=prompt))
        own = [peer.preprocess([text], prompt=prompt)["input_ids"][0].tolist() for text in TEXTS]
        assert [one.ids for one in tokens] == own
        assert tokens[3].truncated
        assert cosine_rows(encoder.encode(tokens), peer.encode(TEXTS, prompt=prompt)).min() >= 0.99999


def test_template_text_survives_truncation(backbone: Path, tmp_path: Path) -> None:
    saved(backbone, tmp_path, "answer")
    encoder = load(of(tmp_path / "model"), LoadOptions("cpu", "fp32"))
    (whole,), (end,), (start,) = (
        tokens_of(encoder, [text], TextOptions(truncate=side))
        for text, side in (("x", "error"), (TEXTS[3], "end"), (TEXTS[3] + "last", "start"))
    )
    (too_long,) = encoder.tokenize([TEXTS[3]], TextOptions(truncate="error"))
    assert isinstance(too_long, TextTooLong)
    assert (too_long.limit, too_long.tokens > 48) == (48, True)
    assert len(end) == len(start) == 48
    assert end.ids[:4] == start.ids[:4] == whole.ids[:4]
    assert end.ids[-8:] == start.ids[-8:] == whole.ids[-8:]
    assert end.ids != start.ids


def test_a_prompt_that_the_template_refuses_is_an_error_of_its_own(backbone: Path, tmp_path: Path) -> None:
    saved(backbone, tmp_path, "alone")
    encoder = load(of(tmp_path / "model"), LoadOptions("cpu", "fp32"))
    with pytest.raises(InvalidOption, match="no system turn"):
        encoder.tokenize(["x"], TextOptions(prompt_name="query"))
    with pytest.raises(ModelUnavailable, match="take `append_eos` out"):
        load(of(tmp_path / "model", append_eos=True), LoadOptions("cpu", "fp32"))


@pytest.mark.parametrize("arguments", [{}, {"text": {"max_length": 12}}, {"common": {"max_length": 60}}])
def test_a_folder_that_pins_texts_to_plain_text(backbone: Path, tmp_path: Path, arguments: dict[str, Any]) -> None:
    """As older repositories that have a chat template among their files, and as Qwen3-Embedding's own."""
    plain = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    pinned = {"modality_config": plain, "module_output_name": "token_embeddings", "processing_kwargs": arguments}
    peer = saved(backbone, tmp_path, **pinned)
    encoder = load(of(tmp_path / "model"), LoadOptions("cpu", "fp32"))
    assert encoder.max_tokens == next(iter(arguments.values()), {"max_length": 48})["max_length"]
    for name in ("query", None):
        tokens = tokens_of(encoder, TEXTS, TextOptions(prompt_name=name))
        assert cosine_rows(encoder.encode(tokens[:1]), peer.encode(TEXTS[:1], prompt_name=name)).min() >= 0.99999
        assert tokens[3].ids == peer.preprocess(TEXTS[3:4], prompt=peer.prompts.get(name))["input_ids"][0].tolist()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"modality_config": {"image": {}, "image+text": {}}}, "it reads image, image.text, and only texts"),
        ({"processing_kwargs": {"text": {"stride": 4}}}, "asks for stride in processing_kwargs"),
    ],
)
def test_unsupported_arguments_are_refused(
    backbone: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    saved(backbone, tmp_path)
    file = tmp_path / "model" / "sentence_bert_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    with pytest.raises(ModelUnavailable, match=message):
        load(of(tmp_path / "model"), LoadOptions("cpu", "fp32"))


def test_a_trained_version_keeps_the_template(backbone: Path, tmp_path: Path) -> None:
    saved(backbone, tmp_path, "answer")
    spec, base, version = of(tmp_path / "model"), tmp_path / "model", tmp_path / "version"
    version.mkdir()
    model = read_sentence_transformer(spec, base)
    texts = TrainingTexts.of(spec, model, None)
    assert (
        texts.anchors(["x"])[0].ids
        == model.preprocess(["x"], prompt="Find code that does it.")["input_ids"][0].tolist()
    )
    export(spec, model, base, version)
    encoder = load(spec, LoadOptions("cpu", "fp32", folder=version))
    assert encoder.tokenize(TEXTS, TextOptions()) == load(spec, LoadOptions("cpu", "fp32")).tokenize(
        TEXTS, TextOptions()
    )
    assert cosine_rows(encoder.encode(tokens_of(encoder, TEXTS)), model.encode(TEXTS)).min() >= 0.99999
