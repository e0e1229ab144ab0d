"""The code of the fine-tuning measurements: the standard library to train on, installed packages never trained on.

Knows no model. A copy is made of what is used, so that a folder's place (`site-packages`) does not count as vendored.
"""

import shutil
import sysconfig
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from models.training.data.chunks import symbols_of
from models.training.data.collect import build_dataset
from models.training.data.dataset import Dataset
from models.training.data.pairs import links_of
from models.training.data.sources import read_codebase
from models.training.data.split import without_clones
from models.training.options import TrainingOptions
from models.training.verify.held_out import HeldOut, held_out

_LEFT_OUT = ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "*.so", "config-*")


def standard_library(folder: Path) -> Path:
    """A copy of its packages below a folder, without tests."""
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
    """The pairs of docstring and code alone, of those to train on as many as are wanted, from everywhere."""
    dataset = build_dataset(codebase, options)
    pairs = [pair for pair in dataset.pairs if pair.kind == "docstring"]
    training = [pair for pair in pairs if pair.split == "train"]
    held = [pair for pair in pairs if pair.split == "held_out"]
    chosen = [training[at * len(training) // most_training] for at in range(min(most_training, len(training)))]
    return replace(dataset, pairs=[*chosen, *held])


def search_task(codebase: Path, most: int = 1000) -> HeldOut:
    """A codebase's docstrings, at most so many from everywhere, and the code that each should find."""
    symbols = [symbol for file in read_codebase(codebase).files for symbol in symbols_of(file)]
    pairs = [link.pair for link in without_clones(links_of(symbols)) if link.pair.kind == "docstring"]
    chosen = [pairs[at * len(pairs) // most] for at in range(most)] if len(pairs) > most else pairs
    return held_out(replace(pair, split="held_out") for pair in chosen)
