"""ONNX Runtime against torch on the same weights on the CPU, so that the choice between them rests on a figure.

    python -m bench.onnx [--rounds 5] [--threads N] [--texts 256]

all-MiniLM-L6-v2, exported for the occasion, through our own encoders (ONNX Runtime in fp32, torch in fp32 and bf16),
beside sentence-transformers' encode in fp32. All take turns in one process, on as many threads: short texts one by one,
then functions in batches of like lengths.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from sentence_transformers import SentenceTransformer

from models.catalogue import ModelSpec, load_catalogue
from models.encoders.base import Encoder, TextOptions, Tokens, finish
from models.encoders.modules import read_sentence_transformer
from models.loading.device import configure_threads, supports_bf16
from models.loading.loader import LoadOptions, load
from models.weights.hub import locate

from . import corpus, report
from .embed import min_cosine
from .onnx_export import export

BATCH_SIZE = 32
SHORT_CHARS = 100
PACKAGES = ("torch", "sentence-transformers", "transformers")

Embed = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to make texts into unit vectors (B, D), and what it reached: a value a round."""

    name: str
    embed: Embed
    alone_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.onnx")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--texts", type=int, default=256)
    return parser.parse_args()


@contextmanager
def contenders(threads: int) -> Iterator[list[Contender]]:
    """Ours on the graph, ours on torch in each dtype that the hardware has, and the peer, which is the reference."""
    model = load_catalogue().get("minilm")
    with tempfile.TemporaryDirectory() as folder:
        graph = exported(model, Path(folder) / "graph")
        ours = [load(graph, LoadOptions(device="cpu", dtype="fp32", threads=threads))]
        ours.append(load(model, LoadOptions(device="cpu", dtype="fp32")))
        if supports_bf16(torch.device("cpu")):
            ours.append(load(model, LoadOptions(device="cpu", dtype="bf16")))
        names = ["ONNX Runtime, padded", *("torch, packed" if each.packed else "torch, padded" for each in ours[1:])]
        found = [
            Contender(f"mlbus: {name}, {encoder.dtype}", _encoding(encoder))
            for name, encoder in zip(names, ours, strict=True)
        ]
        peer = read_sentence_transformer(model, locate(model))
        yield [*found, Contender("sentence-transformers: encode, fp32", _peer(peer))]


def exported(model: ModelSpec, folder: Path) -> ModelSpec:
    """The entry of the same model as an ONNX graph, written to `folder`."""
    export(locate(model), folder)
    fields = {"id": f"{model.id}_onnx", "served_by": "onnx", "folder": folder, "package": None, "sha256": {}}
    return model.model_copy(update=fields)


def _encoding(encoder: Encoder) -> Embed:
    def embed(texts: Sequence[str]) -> np.ndarray:
        tokens = [item for item in encoder.tokenize(texts, TextOptions()) if isinstance(item, Tokens)]
        return finish(encoder.encode(tokens), normalize=True)

    return embed


def _peer(peer: SentenceTransformer) -> Embed:
    def embed(texts: Sequence[str]) -> np.ndarray:
        vectors: np.ndarray = peer.encode(list(texts), batch_size=len(texts), show_progress_bar=False)
        return vectors

    return embed


def measure(contender: Contender, short: Sequence[str], texts: Sequence[str]) -> None:
    """One round of one contender; a first text, not timed, sees off the threads of the one before."""
    contender.embed(short[:1])
    started = time.perf_counter()
    for text in short:
        contender.embed([text])
    contender.alone_ms.append((time.perf_counter() - started) / len(short) * 1e3)
    started = time.perf_counter()
    for first in range(0, len(texts), BATCH_SIZE):
        contender.embed(texts[first : first + BATCH_SIZE])
    contender.rates.append(len(texts) / (time.perf_counter() - started))


def row(contender: Contender, ours: Contender, reference: np.ndarray, texts: Sequence[str]) -> list[str]:
    """A contender's line in the table."""
    return [
        contender.name,
        f"{statistics.median(contender.alone_ms):.2f}",
        f"{report.ratio(contender.alone_ms, ours.alone_ms):.2f}",
        f"{statistics.median(contender.rates):.1f}",
        f"{min(contender.rates):.1f} to {max(contender.rates):.1f}",
        f"{report.ratio(ours.rates, contender.rates):.2f}",
        f"{min_cosine(contender.embed(texts), reference):.6f}",
    ]


def main() -> None:
    """Measure, round after round, and print the table."""
    options = parse()
    configure_threads(options.threads)
    texts = sorted(corpus.functions(options.texts), key=len)
    short = [text for text in texts if len(text) <= SHORT_CHARS][:BATCH_SIZE]
    facts = {
        "onnx": f"ONNX Runtime {onnxruntime.__version__}",
        "texts": f"{len(texts)} functions, digest {corpus.digest(texts)}; {len(short)} of them short",
        "threads": options.threads,
    }
    report.print_setting("bench.onnx", PACKAGES, model="all-MiniLM-L6-v2", rounds=options.rounds, **facts)
    with contenders(options.threads) as found:
        for contender in found:
            contender.embed(texts[-BATCH_SIZE:])
        for _ in range(options.rounds):
            for contender in found:
                measure(contender, short, texts)
        probe = texts[:: len(texts) // BATCH_SIZE]
        reference = found[-1].embed(probe)
        header = ["", "1 text, ms", "ONNX is x", "texts/s", "range", "ONNX is x", "min cosine to fp32"]
        report.print_table(header, [row(contender, found[0], reference, probe) for contender in found])


if __name__ == "__main__":
    main()
