"""Hooks between layers, on a real tiny BERT: a pass inside another pass changes neither."""

import pytest
import torch
from transformers import BertConfig, BertModel

from models.encoders.sentence_encoder import LayerHooks

LAYERS = 4


@pytest.fixture(scope="module")
def model() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=64
    )
    return BertModel(config).eval()


@pytest.fixture(scope="module")
def layers(model) -> LayerHooks:
    return LayerHooks(model)


def forward(model: BertModel, seed: int) -> torch.Tensor:
    ids = torch.randint(64, (3, 5 + seed), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        return model(input_ids=ids).last_hidden_state


def test_a_pass_in_the_middle_of_another_changes_neither(model, layers):
    alone = [forward(model, seed) for seed in range(LAYERS)]
    inner: list[torch.Tensor] = []

    def another() -> None:
        with layers.calling(None):
            inner.append(forward(model, 1 + len(inner)))

    with layers.calling(another):
        outer = forward(model, 0)
    assert len(inner) == LAYERS - 1
    for found, expected in zip([outer, *inner], alone, strict=True):
        assert torch.equal(found, expected)


def test_no_call_outside_the_context(model, layers):
    calls: list[int] = []
    with layers.calling(lambda: calls.append(1)):
        pass
    forward(model, 0)
    assert calls == []


def test_an_aborted_pass_leaves_nothing_behind(model, layers):
    def break_off() -> None:
        raise KeyError

    with pytest.raises(KeyError), layers.calling(break_off):
        forward(model, 0)
    assert torch.equal(forward(model, 0), forward(model, 0))


def test_a_model_without_layers_has_no_hooks():
    model = torch.nn.Linear(2, 2)
    calls: list[int] = []
    with LayerHooks(model).calling(lambda: calls.append(1)):
        model(torch.zeros(1, 2))
    assert calls == []
