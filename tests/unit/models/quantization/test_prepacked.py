"""Layers laid out for oneDNN: the same products, the same bias, and no second copy of shared weights."""

import pytest
import torch

from models.quantization.prepacked import PrepackedLinear, prepack


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 32)
        self.inner = torch.nn.Linear(32, 32)
        self.output = torch.nn.Linear(32, 50, bias=False)
        self.output.weight = self.embedding.weight


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("rows", [1, 7, 16, 100])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_the_same(dtype: torch.dtype, tolerance: float, rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(48, 80, bias=bias)).to(dtype)
    hidden = torch.randn(1, rows, 48).to(dtype)
    with torch.inference_mode():
        plain = model(hidden)
        prepack(model)
        packed = model(hidden)

    assert isinstance(model[0], PrepackedLinear)
    assert packed.shape == plain.shape
    assert torch.allclose(packed, plain, atol=tolerance, rtol=tolerance)


def test_non_contiguous_rows_are_supported() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 16))
    hidden = torch.randn(16, 5).T
    with torch.inference_mode():
        plain = model(hidden)
        prepack(model)
        assert torch.allclose(model(hidden), plain, atol=1e-6)


def test_shared_weights_stay_as_they_are() -> None:
    model = Tied()
    prepack(model)
    assert isinstance(model.inner, PrepackedLinear)
    assert type(model.output) is torch.nn.Linear
    assert model.output.weight is model.embedding.weight


def test_half_precision_stays_as_it_is() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 16)).half()
    prepack(model)
    assert type(model[0]) is torch.nn.Linear
