"""Our losses against sentence-transformers' own and against the formula; adapters merged against unmerged.

The models are all-MiniLM-L6-v2 and a tiny random one of Qodo's layout. fp32, absolute tolerance 1e-5.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from bench.random_models import QUERY_PROMPT, write_qodo
from models.catalogue import ModelSpec, load_catalogue
from models.training.data.records import Pair
from models.training.fit.batches import collate, examples
from models.training.fit.method import Method, make_loss, merge_adapters, trainable_model, vector_lengths
from models.training.fit.texts import TrainingTexts
from models.training.run import TrainingOptions
from models.weights.hub import locate

CLOSE = 1e-5
SCALE = 20
WORDS = ["file", "socket", "tree", "token", "matrix", "thread", "price", "colour"]
PAIRS = [
    Pair(
        f"Open the {word}.",
        f"def open_{word}(name):\n    return {word}.open(name, mode='r')",
        "docstring",
        negatives=(f"def close_{word}(): pass", f"def drop_{word}(it): del it"),
    )
    for word in WORDS
]
CPU = Method(torch.device("cpu"), bf16=False, lora=False, checkpointing=False)


def options(**fields: Any) -> TrainingOptions:
    return TrainingOptions(**{"batch_size": len(PAIRS), **fields})


@pytest.fixture(scope="module")
def minilm() -> tuple[ModelSpec, SentenceTransformer]:
    entry = load_catalogue().get("minilm")
    return entry, trainable_model(entry, locate(entry), options(), CPU, torch.float32)


@pytest.fixture(scope="module")
def qodo(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, Path]:
    folder = write_qodo(tmp_path_factory.mktemp("qodo"))
    changed = {"folder": folder, "repository": None, "dimensions": 64, "dtype": "fp32"}
    return load_catalogue().get("qodo").model_copy(update=changed), folder


def batch(entry: ModelSpec, model: SentenceTransformer, chosen: TrainingOptions) -> list[dict[str, Any]]:
    """The columns of one batch of all pairs, as the trainer takes them apart."""
    texts = TrainingTexts.of(entry, model, 64)
    columns = collate(texts)(examples(PAIRS, texts, chosen))
    names = list(dict.fromkeys(name.partition("_")[0] for name in columns))
    return [{key[len(name) + 1 :]: value for key, value in columns.items() if key.startswith(name)} for name in names]


def computed(loss: torch.nn.Module, columns: list[dict[str, Any]]) -> torch.Tensor:
    value: torch.Tensor = loss([dict(column) for column in columns], None)
    return value


def gradients(model: SentenceTransformer, loss: torch.nn.Module, columns: list[dict[str, Any]]) -> torch.Tensor:
    model.zero_grad()
    computed(loss, columns).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


@pytest.mark.parametrize("negatives", [0, 1, 2])
def test_infonce_is_the_librarys_and_the_formula(minilm: tuple[ModelSpec, SentenceTransformer], negatives: int) -> None:
    entry, model = minilm
    chosen = options(hard_negatives=negatives)
    columns = batch(entry, model, chosen)
    ours = computed(make_loss(model, chosen, len(PAIRS)), columns)
    texts = [[pair.anchor for pair in PAIRS], [pair.positive for pair in PAIRS]]
    texts += [[pair.negatives[number] for pair in PAIRS] for number in range(negatives)]
    library = MultipleNegativesRankingLoss(model)([model.preprocess(column) for column in texts], None)
    with torch.no_grad():
        anchors, *documents = (model(model.preprocess(column))["sentence_embedding"] for column in texts)
        scores = SCALE * anchors @ torch.cat(documents).T
        formula = (scores.logsumexp(dim=1) - scores.diagonal()).mean()
    assert abs(ours - library) < CLOSE
    assert abs(ours - formula) < CLOSE


@pytest.mark.parametrize("matryoshka", [False, True])
def test_in_pieces_it_is_the_same_with_the_same_gradients(
    minilm: tuple[ModelSpec, SentenceTransformer], matryoshka: bool
) -> None:
    entry, model = minilm
    chosen = options(matryoshka=matryoshka)
    columns, lengths = batch(entry, model, chosen), vector_lengths(entry, 384)
    whole, pieces = (make_loss(model, chosen, rows, lengths) for rows in (len(PAIRS), 3))
    assert abs(computed(whole, columns) - computed(pieces, columns)) < CLOSE
    expected, found = gradients(model, whole, columns), gradients(model, pieces, columns)
    assert torch.allclose(found, expected, atol=CLOSE)


def test_the_matryoshka_loss_is_the_sum_over_the_lengths(minilm: tuple[ModelSpec, SentenceTransformer]) -> None:
    entry, model = minilm
    chosen = options(matryoshka=True, hard_negatives=0)
    lengths = vector_lengths(entry, 384)
    assert lengths == (384, 192, 96)
    columns = batch(entry, model, chosen)
    with torch.no_grad():
        vectors = [model(dict(column))["sentence_embedding"] for column in columns]
        expected = 0.0
        for length in lengths:
            cut = [torch.nn.functional.normalize(each[:, :length]) for each in vectors]
            scores = SCALE * cut[0] @ cut[1].T
            expected += float((scores.logsumexp(dim=1) - scores.diagonal()).mean())
    assert abs(computed(make_loss(model, chosen, len(PAIRS), lengths), columns) - expected) < 3 * CLOSE


def test_the_triplet_loss_is_the_formula(minilm: tuple[ModelSpec, SentenceTransformer]) -> None:
    entry, model = minilm
    chosen = options(loss="triplet")
    columns = batch(entry, model, chosen)
    with torch.no_grad():
        anchor, positive, negative = (model(dict(column))["sentence_embedding"] for column in columns)
        near, far = (anchor * positive).sum(dim=1), (anchor * negative).sum(dim=1)
        expected = (far - near + 0.2).clamp(min=0).mean()
    assert abs(computed(make_loss(model, chosen, len(PAIRS)), columns) - expected) < CLOSE


def test_the_anchors_prompt_and_end_token_are_those_of_serving(qodo: tuple[ModelSpec, Path]) -> None:
    entry, folder = qodo
    model = trainable_model(entry, folder, options(), CPU, torch.float32)
    texts = TrainingTexts.of(entry, model, None)
    ours = texts.features(texts.anchors(["find the file", "x"]))
    served = model.tokenizer([QUERY_PROMPT + "find the file", QUERY_PROMPT + "x"])["input_ids"]
    found = [ids[mask.bool()].tolist() for ids, mask in zip(ours["input_ids"], ours["attention_mask"], strict=True)]
    assert found == served
    assert texts.document_prompt == ""


@pytest.mark.parametrize("checkpointing", [False, True])
def test_merged_adapters_give_what_they_gave_beside_the_weights(
    qodo: tuple[ModelSpec, Path], checkpointing: bool
) -> None:
    entry, folder = qodo
    chosen, method = options(lora_rank=4), Method(torch.device("cpu"), False, lora=True, checkpointing=checkpointing)
    model = trainable_model(entry, folder, chosen, method, torch.float32)
    columns = batch(entry, model, chosen)
    before = model(dict(columns[1]))["sentence_embedding"].detach()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    for _ in range(3):
        computed(make_loss(model.train(), chosen, len(PAIRS)), columns).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    beside = model(dict(columns[1]))["sentence_embedding"].detach()
    merge_adapters(model[0].auto_model)
    merged = model(dict(columns[1]))["sentence_embedding"].detach()
    assert (beside - before).abs().max() > 0.01
    assert (merged - beside).abs().max() < CLOSE
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert sum(weight.numel() for weight in trained) < 60_000
