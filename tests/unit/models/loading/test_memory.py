"""Memory: estimates for a model, what is free, and that it is given back, measured in a child process."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.random_models import write_qodo
from models.encoders import onnx_session
from models.errors import DeviceFailed
from models.loading import memory
from models.loading.device import device_errors

GIVES_BACK = """
import sys
from pathlib import Path
import torch
from models.loading.load_cache import LoadCache
from models.catalogue import load_catalogue
from models.encoders.base import TextOptions
from models.loading.loader import LoadOptions, load
from models.loading.memory import give_back

torch.set_num_threads(1)
entry = {"kind": "embedding", "folder": sys.argv[1], "dtype": "bf16", "min_cosine": -1}
spec, options = load_catalogue({"m": entry}).get("m"), LoadOptions("cpu", cache=LoadCache(Path(sys.argv[2])))

def own_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

load(spec, options).close()
give_back()
for _ in range(3):
    before = own_mib()
    encoder = load(spec, options)
    encoder.encode(encoder.tokenize(["def hello(): pass"], TextOptions()))
    loaded, weights = own_mib(), encoder.weight_bytes // 2**20
    encoder.close()
    del encoder
    give_back()
    print(loaded - before, own_mib() - before, weights)
"""


@pytest.mark.slow
def test_a_closed_model_gives_its_memory_back_to_the_system(tmp_path: Path) -> None:
    # Cast to bf16, for weights that stay as they are in the file are mapped and not read. Mostly one large matrix, for
    # of small ones glibc keeps up to 64 MB in the arena of each thread that has read some, for the next load.
    folder = write_qodo(tmp_path / "model", layers=2, hidden=512, heads=8, kv_heads=2, intermediate=512, vocab=90000)
    command = [sys.executable, "-c", GIVES_BACK, str(folder), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=Path(__file__).parents[4])
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        took, kept, weights = map(int, line.split())
        assert took >= 0.9 * weights > 80
        assert kept <= 0.2 * weights


def test_what_a_model_will_take_is_read_from_its_headers(tmp_path: Path) -> None:
    folder = write_qodo(tmp_path, layers=2, hidden=256, heads=4, kv_heads=2, intermediate=1024, vocab=2000)
    files = sorted(folder.glob("*.safetensors"))
    weights = sum(file.stat().st_size for file in files) / 4
    assert memory.estimated_bytes(files, "fp32") == pytest.approx(4 * weights, rel=0.01)
    assert memory.estimated_bytes(files, "bf16") == pytest.approx(2 * weights, rel=0.01)
    embedding = 2000 * 256
    assert memory.estimated_bytes(files, "bf16", "int8") == pytest.approx(2 * embedding + weights - embedding, rel=0.05)
    tied = memory.estimated_bytes(files, "bf16", "int8", generates=True)  # without an output layer of its own
    assert tied == pytest.approx(weights, rel=0.05)
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"x" * 1000)
    assert memory.estimated_bytes([graph], "fp32") == 1000


def test_what_a_control_group_keeps_of_files_counts_as_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    assert memory._host_memory(tmp_path) == (100_000, 1_000_000)
    (tmp_path / "memory.stat").write_text("anon 200000\nactive_file 300000\ninactive_file 400000\n")
    assert memory._host_memory(tmp_path) == (800_000, 1_000_000)


def test_the_default_budget_leaves_a_margin() -> None:
    free, total = memory.device_memory("cpu")
    assert 0 < free <= total
    assert 0 <= memory.default_budget("cpu") <= free - memory.MARGIN_BYTES


@pytest.mark.parametrize("translated", [device_errors, onnx_session._device_errors], ids=["torch", "onnx"])
def test_a_gpu_that_repeats_its_error_has_failed_for_good(monkeypatch: pytest.MonkeyPatch, translated: Any) -> None:
    """After other failures it goes on working; a CPU is not checked."""

    def illegal(_: str) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(torch.cuda, "synchronize", illegal)
    with pytest.raises(DeviceFailed, match=r"'cuda:0' has failed for good: .*encountered; start"), translated("cuda:0"):
        raise RuntimeError("an assert")
    with pytest.raises(RuntimeError, match="an assert"), translated("cpu"):
        raise RuntimeError("an assert")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    with pytest.raises(RuntimeError, match="an assert"), translated("cuda:0"):
        raise RuntimeError("an assert")
