"""Loading and encoding with models of the true size, beside the limits and sentence-transformers.

    python -m bench.models [--device cpu] [--models qodo,jina] [--layers 4] [--rounds 5]

Random weights in Qodo-Embed-1-1.5B's and jina-embeddings-v3's own shapes; fewer layers than the real ones on the CPU.
mlbus and sentence-transformers load the same files in the same dtype, each in a process of its own, and take turns on
the same texts. Beside them: the rate at which the files can be read from the page cache, and a large matrix product.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from models.loading.device import default_threads

from . import report
from .loaded import Load, Loaded, Setting, loaded
from .random_models import write_jina, write_qodo

PACKAGES = ("torch", "sentence-transformers", "transformers", "safetensors")
SHAPES = ((1, 32), (32, 128), (32, 512))
"""Texts and the tokens of each."""
CPU_LAYERS = 4
BUFFER_BYTES = 1 << 24
BATCH_S, PASSES = 1.0, 20
"""A round passes over a batch until so many seconds are over, and so many times at most."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model's true shape."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    gated: bool
    """Whether its feed-forward layers have three matrices and not two."""

    def write(self, folder: Path, layers: int) -> Path:
        """Write a repository of this shape with random weights."""
        if self.name == "qodo":
            return write_qodo(
                folder,
                layers=layers,
                hidden=self.hidden,
                heads=self.heads,
                kv_heads=self.kv_heads,
                intermediate=self.intermediate,
                vocab=self.vocab,
            )
        return write_jina(
            folder,
            layers=layers,
            hidden=self.hidden,
            heads=self.heads,
            intermediate=self.intermediate,
            vocab=self.vocab,
        )

    def flops(self, texts: int, tokens: int, layers: int) -> float:
        """Of one pass: two for each weight and token outside the embedding, and attention's two products."""
        kv_width = self.hidden // self.heads * self.kv_heads
        matrices = 3 if self.gated else 2
        weights = 2 * self.hidden * (self.hidden + kv_width) + matrices * self.hidden * self.intermediate
        return texts * tokens * layers * (2 * weights + 4 * tokens * self.hidden)


MODELS = {
    "qodo": Model("qodo", 28, 1536, 12, 2, 8960, 151646, gated=True),
    "jina": Model("jina", 24, 1024, 16, 16, 4096, 250002, gated=False),
}


@dataclass(frozen=True, slots=True)
class Contender:
    """Who loads and encodes, its loads, and for each shape the milliseconds of each round."""

    name: str
    process: Loaded
    load: Load
    rounds: dict[tuple[int, int], list[float]]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.models")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--layers", type=int, help=f"all on a GPU, {CPU_LAYERS} on the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=default_threads())
    options = parser.parse_args()
    if options.layers is None and options.device == "cpu":
        options.layers = CPU_LAYERS
    return options


def texts_of(folder: Path, count: int, tokens: int, seed: int = 0) -> list[str]:
    """Different texts of exactly so many tokens, by the model's own tokeniser."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words = sorted(word[1:] for word in tokenizer.get_vocab() if word[0] == "Ġ" and word[1:].isalpha())
    single = [word for word in words if word.isascii() and len(tokenizer.encode(f" {word}").ids) == 1]
    chosen = np.random.default_rng((seed, count, tokens)).choice(single, (count, tokens))
    return ["".join(f" {word}" for word in row) for row in chosen]


def read_rate(folder: Path, read: Callable[[Path], int]) -> float:
    """Bytes a second of reading the weights, from the page cache into which a first pass brings them."""
    files = sorted(folder.glob("*.safetensors"))
    rates = []
    for _ in range(3):
        started = time.perf_counter()
        size = sum(map(read, files))
        rates.append(size / (time.perf_counter() - started))
    return max(rates[1:])


def into_fresh_memory(file: Path) -> int:
    """Read a file as a load has to: into memory that the kernel has yet to give. Returns its size."""
    return len(file.read_bytes())


def through_a_buffer(file: Path) -> int:
    """Read a file piece by piece into the same memory, which keeps nothing. Returns its size."""
    buffer = bytearray(BUFFER_BYTES)
    with file.open("rb", buffering=0) as source:
        return sum(iter(lambda: source.readinto(buffer) or 0, 0))


async def measure(model: Model, options: argparse.Namespace) -> None:
    """One model: write it, load it twice over, take turns, print."""
    layers = options.layers or model.layers
    with tempfile.TemporaryDirectory() as parent:
        folder = model.write(Path(parent) / "model", layers)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        rate, buffered = read_rate(folder, into_fresh_memory), read_rate(folder, through_a_buffer)
        print(f"{model.name}: {layers} of {model.layers} layers, {size / 1e9:.2f} GB in fp32")
        print(
            f"read from the warm page cache at {rate / 1e9:.2f} GB/s into fresh memory, which the shares below are of,"
        )
        print(f"and at {buffered / 1e9:.2f} GB/s through one buffer of 16 MiB\n", flush=True)
        cache = str(Path(parent) / "cache")
        settings = [
            Setting(by, str(folder), cache, options.device, options.dtype, options.threads)
            for by in ("mlbus", "sentence-transformers")
        ]
        async with loaded(settings[0]) as first:  # fills mlbus's cache, as the first start on a machine does
            first_load = await first.load()
        async with AsyncExitStack() as stack:
            contenders = [await _contender(stack, setting) for setting in settings]
            peak = max([await contenders[0].process.matmul() for _ in range(3)])
            await _rounds(contenders, folder, options.rounds)
            cosine = await _agreement(contenders, folder)
        _print_loads(contenders, first_load, size, rate)
        _print_rounds(model, contenders, layers, peak)
        print(f"lowest cosine between the two: {cosine:.6f}\n")
        _print_targets(model, contenders, layers, size, rate, peak, options)


async def _contender(stack: AsyncExitStack, setting: Setting) -> Contender:
    process = await stack.enter_async_context(loaded(setting))
    load = await process.load()
    return Contender(setting.by, process, load, {shape: [] for shape in SHAPES})


async def _rounds(contenders: Sequence[Contender], folder: Path, rounds: int) -> None:
    """Every contender in turn on each shape; the first pass of each warms up and sets how many a round has."""
    for shape in SHAPES:
        texts = texts_of(folder, *shape)
        slowest = max([await contender.process.encode(texts, 2) for contender in contenders])
        times = max(1, min(PASSES, int(BATCH_S * 1000 / slowest)))
        for turn in range(rounds):
            for contender in contenders if turn % 2 else reversed(contenders):
                contender.rounds[shape].append(await contender.process.encode(texts, times))


async def _agreement(contenders: Sequence[Contender], folder: Path) -> float:
    texts = texts_of(folder, 8, 64)
    left, right = [await contender.process.vectors(texts) for contender in contenders]
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float((np.sum(left * right, axis=1) / norms).min())


def _print_loads(contenders: Sequence[Contender], first: Load, size: int, rate: float) -> None:
    header = ["load", "s", "of it reading", "of the read rate", "weights GB", "own memory GB", "resident GB", "GPU GB"]
    named = [("mlbus, first time", first), *((contender.name, contender.load) for contender in contenders)]
    report.print_table(header, [_load_row(name, load, size, rate) for name, load in named])


def _load_row(name: str, load: Load, size: int, rate: float) -> list[str]:
    sizes = (load.weight_bytes, load.anon_bytes, load.peak_bytes, load.device_bytes)
    share = size / load.read_s / rate
    return [name, f"{load.total_s:.2f}", f"{load.read_s:.2f}", f"{share:.0%}", *(f"{part / 1e9:.2f}" for part in sizes)]


def _print_rounds(model: Model, contenders: Sequence[Contender], layers: int, peak: float) -> None:
    ours = contenders[0]
    for shape in SHAPES:
        header = [f"{shape[0]} x {shape[1]} tokens", "ms", "range", "tokens/s", "of the peak", "mlbus is x"]
        report.print_table(header, [_row(model, ours, contender, shape, layers, peak) for contender in contenders])
    print(f"the peak: {peak / 1e12:.2f} TFLOP/s, a square product of matrices in the same process")


def _row(
    model: Model, ours: Contender, contender: Contender, shape: tuple[int, int], layers: int, peak: float
) -> list[str]:
    ms = contender.rounds[shape]
    middle = statistics.median(ms)
    return [
        contender.name,
        f"{middle:.1f}",
        f"{min(ms):.1f} to {max(ms):.1f}",
        f"{shape[0] * shape[1] / middle * 1000:,.0f}",
        f"{_share(model, contender, shape, layers, peak):.0%}",
        f"{report.ratio(ms, ours.rounds[shape]):.2f}",
    ]


def _share(model: Model, contender: Contender, shape: tuple[int, int], layers: int, peak: float) -> float:
    """Of the device's peak."""
    return model.flops(*shape, layers) / (statistics.median(contender.rounds[shape]) / 1000) / peak


def _print_targets(
    model: Model,
    contenders: Sequence[Contender],
    layers: int,
    size: int,
    rate: float,
    peak: float,
    options: argparse.Namespace,
) -> None:
    ours, theirs = contenders
    report.print_target(f"{model.name}: reading, of the read rate", size / ours.load.read_s / rate, 0.7)
    held = ours.load.anon_bytes + ours.load.device_bytes
    report.print_target(f"{model.name}: peak of own memory, x its weights", held / ours.load.weight_bytes, 1.15, True)
    one, _, full = SHAPES
    if options.device == "cuda" and layers == model.layers and model.name == "qodo":
        for shape in SHAPES:
            times = report.ratio(theirs.rounds[shape], ours.rounds[shape])
            report.print_target(f"qodo: {shape[0]} x {shape[1]}, x sentence-transformers", times, 1.3)
        report.print_target("qodo: one text, ms", statistics.median(ours.rounds[one]), 12, True)
        report.print_target("qodo: 32 texts of 512 tokens, ms", statistics.median(ours.rounds[full]), 120, True)
        report.print_target("qodo: full batch, of the peak", _share(model, ours, full, layers, peak), 0.45)
    print()


async def main() -> None:
    """Each model in turn."""
    options = parse()
    facts = {"weights": f"random, {options.dtype}", "threads": options.threads, "rounds": options.rounds}
    report.print_setting("bench.models", PACKAGES, device=options.device, **facts)
    for name in options.models:
        await measure(MODELS[name], options)


if __name__ == "__main__":
    asyncio.run(main())
