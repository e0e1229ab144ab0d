"""Weight-only quantisation: accuracy, size, layers that stay as they are, and errors."""

import copy
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

from bench.random_models import write_qodo
from models.catalogue import ModelSpec, Quantization, load_catalogue
from models.encoders.base import TextOptions, Tokens, Vectors, cosine_rows
from models.encoders.modules import read_sentence_transformer
from models.encoders.torch_encoder import TorchEncoder
from models.errors import CannotQuantize
from models.loading.footprint import footprint
from models.loading.self_test import TEST_TEXTS
from models.quantization import int4, int8
from models.quantization.quantize import linear_layers, quantizable, quantize, tied_outputs, weight_bytes
from models.weights.hub import locate

CPU = torch.device("cpu")
NEAR = {"int8": 0.999, "int4": 0.95}
"""The lowest cosine to fp32 over the test texts, for all-MiniLM-L6-v2."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def qodo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_qodo(tmp_path_factory.mktemp("qodo"), layers=2, hidden=128, intermediate=256)


def spec_of(folder: Path) -> ModelSpec:
    return load_catalogue({"mine": {"kind": "embedding", "folder": str(folder)}}).get("mine")


def encoder_of(spec: ModelSpec, dtype: torch.dtype, quantization: Quantization | None) -> TorchEncoder:
    return TorchEncoder(spec, "0" * 64, read_sentence_transformer(spec, locate(spec), dtype), CPU, quantization)


def vectors(encoder: TorchEncoder, packed: bool = False) -> Vectors:
    encoder.pack() if packed else encoder.pad()
    tokens = encoder.tokenize([text for text in TEST_TEXTS if text], TextOptions())
    return encoder.encode([item for item in tokens if isinstance(item, Tokens)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_a_real_model_stays_near(dtype: torch.dtype, quantization: Quantization) -> None:
    spec = load_catalogue().get("minilm")
    exact = vectors(encoder_of(spec, torch.float32, None))
    encoder = encoder_of(spec, dtype, quantization)
    assert cosine_rows(vectors(encoder), exact).min() >= NEAR[quantization]
    assert encoder.version.endswith(f"-{quantization}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_packed_equals_padded(qodo: Path, dtype: torch.dtype, quantization: Quantization) -> None:
    encoder = encoder_of(spec_of(qodo), dtype, quantization)
    cosines = cosine_rows(vectors(encoder, packed=True), vectors(encoder))
    assert cosines.min() >= (0.99999 if dtype == torch.float32 else 0.999)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_sentence_transformers_still_encodes(qodo: Path, quantization: Quantization) -> None:
    model = SentenceTransformer(str(qodo), device="cpu")
    exact = model.encode(list(TEST_TEXTS))
    assert quantize(model[0].auto_model, quantization) == 0
    real = [row for row, text in enumerate(TEST_TEXTS) if text]
    worst = cosine_rows(model.encode(list(TEST_TEXTS))[real], exact[real]).min()
    assert worst >= {"int8": 0.999, "int4": 0.85}[quantization]


def test_the_kernel_equals_the_unpacked_weights() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(96, 48, dtype=torch.bfloat16).requires_grad_(False)
    kernel, plain = int4.int4_layer(layer, CPU), int4.int4_layer(layer, torch.device("meta"))
    assert (type(kernel), type(plain)) == (int4.KernelInt4Linear, int4.PlainInt4Linear)
    assert weight_bytes(kernel) == weight_bytes(plain)
    for shape in ((96,), (1, 96), (3, 5, 96)):
        hidden = torch.randn(shape, dtype=torch.bfloat16)
        torch.testing.assert_close(kernel(hidden), plain(hidden), atol=0.02, rtol=0.02)
        exact = int4.int4_layer(copy.deepcopy(layer).float(), CPU)(hidden.float())
        torch.testing.assert_close(kernel(hidden).float(), exact, atol=0.02, rtol=0.02)


def test_the_error_of_int4_is_half_a_step_at_most() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 32, bias=False)
    found = int4.PlainInt4Linear(*int4._quantized(layer.weight.detach()), None)(torch.eye(64)).T
    groups = layer.weight.detach().view(32, 2, 32)
    step = (groups.amax(-1).clamp(min=0) - groups.amin(-1).clamp(max=0)) / 15
    error = (found.view(32, 2, 32) - groups).abs().amax(-1)
    assert (error <= 0.6 * step).all()  # the scale is rounded to bfloat16


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_footprint_equals_the_real_size(qodo: Path, quantization: Quantization) -> None:
    for spec in (spec_of(qodo), load_catalogue().get("minilm")):
        model = read_sentence_transformer(spec, locate(spec), torch.bfloat16)
        sizes = footprint(spec).sizes
        assert weight_bytes(model) == pytest.approx(sizes["bf16"], rel=0.01)
        quantize(model[0].auto_model, quantization)
        assert weight_bytes(model) == pytest.approx(sizes[quantization], rel=0.01)
        assert sizes[quantization] < sizes["bf16"]


def tiny_starcoder() -> GPTBigCodeForCausalLM:
    torch.manual_seed(0)
    return GPTBigCodeForCausalLM(
        GPTBigCodeConfig(vocab_size=64, n_embd=32, n_head=2, n_layer=1, n_positions=16, bos_token_id=0, eos_token_id=0)
    ).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_one_int8_matrix_is_embedding_and_output_layer(dtype: torch.dtype, quantization: Quantization) -> None:
    model = tiny_starcoder().to(dtype)
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        exact = model(ids).logits
        assert tied_outputs(model) == {"lm_head": "transformer.wte"}
        assert quantize(model, quantization) == (0 if quantization == "int8" else len(linear_layers(model)))
        assert (
            torch.nn.functional.cosine_similarity(model(ids).logits.float(), exact.float(), dim=-1).min()
            > NEAR[quantization]
        )
    assert model.lm_head.matrix is model.transformer.wte.matrix
    assert weight_bytes(model.lm_head) == 64 * 32 + 64 * 2


def test_a_layer_that_shares_its_weights_with_others_stays() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 32), torch.nn.Linear(32, 16))
    model[1].weight = model[0].weight
    assert (list(quantizable(model, "int8")), tied_outputs(model)) == (["2"], {})
    assert quantize(model, "int8") == 2
    assert model[1].weight is model[0].weight


@pytest.mark.parametrize(("out_features", "in_features"), [(48, 96), (31, 64), (12, 16), (4100, 1040)])
def test_kernel_and_plain_product_are_the_same(out_features: int, in_features: int) -> None:
    """To bfloat16's digits, whose last of eight is half a thousandth of two; the exact product in float64."""
    torch.manual_seed(0)
    weight = torch.randn(out_features, in_features, dtype=torch.bfloat16)
    matrix = int8.int8_matrix(weight, CPU)
    assert isinstance(matrix, int8.KernelInt8Matrix)
    stored = matrix.numbers.double() * matrix.scales.double()[:, None]
    assert (stored - weight.double()).abs().max() <= 0.6 * matrix.scales.max()
    for rows in (1, int8.FEW_ROWS, int8.FEW_ROWS + 1, 100):
        hidden = torch.randn(rows, in_features, dtype=torch.bfloat16) * torch.logspace(-9, 9, rows)[:, None]
        hidden = hidden.to(torch.bfloat16)
        exact = hidden.double() @ stored.T
        error = (matrix(hidden).double() - exact).norm(dim=1) / exact.norm(dim=1)
        assert error.max() < 0.006, rows


def test_a_rows_kernel_does_not_depend_on_its_neighbours() -> None:
    matrix = int8.int8_matrix(torch.randn(48, 96, dtype=torch.bfloat16), CPU)
    rows = int8.shared_rows(torch.nn.ModuleList([matrix]))
    hidden = torch.randn(40, 96, dtype=torch.bfloat16)
    rows.first = 30
    together = matrix(hidden)
    for place in (0, 29):
        rows.first = 1
        assert torch.equal(matrix(hidden[place : place + 1]), together[place : place + 1])
    rows.first = 0
    assert torch.equal(matrix(hidden[30:]), together[30:])
    assert matrix(hidden[:0]).shape == (0, 48)


def test_rows_of_zeros_and_rows_that_are_not_finite_stay_so() -> None:
    weight = torch.randn(16, 32, dtype=torch.bfloat16)
    weight[3] = 0
    matrix = int8.int8_matrix(weight, CPU)
    for rows in (4, 16, 80):
        hidden = torch.randn(rows, 32, dtype=torch.bfloat16)
        hidden[0], hidden[1, 5], hidden[2, 5] = 0, float("nan"), float("inf")
        out = matrix(hidden)
        assert (out[0] == 0).all()
        assert not torch.isfinite(out[1:3, :3]).any()
        assert torch.isfinite(out[3:]).all()
        assert (out[3:, 3] == 0).all()


def test_a_matrix_without_a_kernel_is_multiplied_plainly() -> None:
    layer = torch.nn.Linear(33, 7).bfloat16()
    model = torch.nn.Sequential(layer, torch.nn.Linear(7, 16).bfloat16())
    assert not int8.has_kernel(layer.weight, CPU)
    hidden = torch.randn(3, 33, dtype=torch.bfloat16)
    exact, plain = model(hidden), int8.int8_matrix(layer.weight, CPU)
    torch.testing.assert_close(plain(hidden), hidden @ plain.rows(torch.arange(7), torch.bfloat16).T)
    assert quantize(model, "int8") == 0
    assert torch.nn.functional.cosine_similarity(model(hidden), exact, dim=-1).min() > 0.99


def test_int8_layers_keep_their_bias_and_shape() -> None:
    layer = torch.nn.Linear(32, 16).bfloat16()
    model = torch.nn.Sequential(layer)
    hidden = torch.randn(2, 3, 32, dtype=torch.bfloat16)
    exact = layer(hidden)
    quantize(model, "int8")
    assert str(model[0]).startswith("Int8Linear(\n  in_features=32, out_features=16, bias=True")
    torch.testing.assert_close(model(hidden), exact, atol=0.03, rtol=0.03)


def test_layers_that_do_not_fit_stay_and_are_counted() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Linear(32, 10), torch.nn.Linear(10, 32))
    assert list(quantizable(model, "int4")) == ["0"]
    assert quantize(model, "int4") == 2
    assert model(torch.zeros(2, 64)).shape == (2, 32)


def test_nothing_to_quantise_is_an_error() -> None:
    with pytest.raises(CannotQuantize, match="int4 is not possible here"):
        quantize(torch.nn.Sequential(torch.nn.Linear(10, 10)), "int4")


def test_shared_storages_count_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 8, bias=False))
    assert weight_bytes(model) == 2 * 8 * 8 * 4
    model[1].weight = torch.nn.Parameter(model[0].weight.data[:4])
    assert weight_bytes(model) == 8 * 8 * 4


def test_it_is_silent(qodo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = read_sentence_transformer(spec_of(qodo), qodo)
    capfd.readouterr()
    quantize(model[0].auto_model, "int8")
    assert capfd.readouterr() == ("", "")
