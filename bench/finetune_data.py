"""The code of the fine-tuning benchmarks: the standard library for training, installed packages for evaluation only.

It is copied, so that packages below `site-packages` do not count as vendored.
"""

import shutil
import sysconfig
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from models.training.data.codebase import read_codebase
from models.training.data.collect import build_dataset
from models.training.data.dataset import Dataset
from models.training.data.held_out import HeldOut, held_out
from models.training.data.pairs import pair_sources
from models.training.data.split import without_duplicates
from models.training.data.symbols import symbols_of
from models.training.run import TrainingOptions

_LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "*.so", "config-*")


def standard_library(folder: Path) -> Path:
    """A copy of the standard library below a folder, without tests."""
    return _copied(Path(sysconfig.get_paths()["stdlib"]), folder / "stdlib")


def package(name: str, folder: Path) -> Path:
    """A copy of an installed package, without tests."""
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return _copied(Path(spec.origin).parent, folder / name)


def _copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*_LEFT_OUT), symlinks=False)
    return target


def docstring_pairs(codebase: Path, most_training: int, options: TrainingOptions) -> Dataset:
    """The pairs of docstring and code; of the training ones at most `most_training`, evenly spaced."""
    dataset = build_dataset(codebase, options)
    pairs = [pair for pair in dataset.pairs if pair.kind == "docstring"]
    training = [pair for pair in pairs if pair.split == "train"]
    held = [pair for pair in pairs if pair.split == "held_out"]
    chosen = [training[at * len(training) // most_training] for at in range(min(most_training, len(training)))]
    origin = dataset.manifest.model_dump(include={"source", "commit", "digest", "seed", "files", "skipped", "secrets"})
    return Dataset.of([*chosen, *held], **origin)


def search_task(codebase: Path, most: int = 1000) -> HeldOut:
    """A codebase's docstrings, at most `most` and evenly spaced, each with the code it should find."""
    symbols = [symbol for file in read_codebase(codebase).files for symbol in symbols_of(file)]
    pairs = [link.pair for link in without_duplicates(pair_sources(symbols)) if link.pair.kind == "docstring"]
    chosen = [pairs[at * len(pairs) // most] for at in range(most)] if len(pairs) > most else pairs
    return held_out(replace(pair, split="held_out") for pair in chosen)
