"""Opens a model of unknown origin for the first time: in a process of its own, within limits of memory and time.

The process, `python -m models.sandbox.probe FD`, builds the model on torch's meta device and counts its weights, reads
its tokeniser, and loads it whole where it is small or an ONNX graph, which nothing but a run shows. This is done once
for each content. Models that a Python package brings are not probed, for the package could run code anyway; nor are
versions that we trained, while their digest is the recorded one.
"""

import hashlib
import json
import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoConfig, AutoTokenizer

from ..catalogue import GraphDtype, ModelSpec
from ..errors import ModelError, ModelUnavailable, cause_text
from ..generation.architecture import served_config, skeleton
from ..generation.tokenizer import GenerationTokenizer
from ..loading.footprint import encoder_skeleton
from ..loading.loader import LoadOptions, graph_dtype, load, load_generator
from ..loading.memory import stored_shapes
from ..loading.reading import quiet
from ..weights import hub
from ..weights.model_files import (
    check_weights,
    has_gguf,
    is_static,
    module_folders,
    next_step,
    require_whole,
    weight_files,
)
from ..weights.regular_files import read_regular, texts_of
from ..weights.versions import record_of
from .confined_process import Channel, ChildProcess
from .limits import memory_limit

WHOLE_BYTES = 2 << 30
"""Weights up to this size are loaded whole."""
MEMORY_BYTES = 2 << 30
"""Memory of the process beside three times the weights that it loads whole."""
SLACK = 4
MORE_TENSORS, MORE_NUMBERS = 1_000, 10_000_000
"""A model may have four times what is stored, and this much more: tied weights are stored once, unused ones not at all,
such as a decoder whose encoder alone makes vectors."""
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "sentence-transformers")
_NICENESS = 10


@dataclass(frozen=True, slots=True)
class Probe:
    """A model that is to be opened in a process of its own. key: digest of its content and of the libraries."""

    spec: ModelSpec
    folder: Path
    graph: GraphDtype | None
    key: str

    def run(self, timeout_s: float) -> None:
        """Do it, and wait for the end; to remember that it went well is for the caller.

        Raises ModelUnavailable where the model cannot be opened, or needs more memory or time than it may.
        """
        request = {"spec": self.spec.model_dump(mode="json"), "folder": str(self.folder), "graph": self.graph}
        child = ChildProcess(__name__)
        try:
            child.channel.send(request, timeout_s)
            reason = child.channel.receive(100_000, timeout_s)["reason"]
        except TimeoutError:
            reason = f"opening it took longer than {timeout_s:g} s in a process of its own; {next_step(self.spec)}"
        except (OSError, ValueError, EOFError):
            reason = f"opening it ended the process that was to try that; {next_step(self.spec)}"
        finally:
            child.end()
        if reason:
            raise ModelUnavailable(self.spec.id, reason)


def needed(spec: ModelSpec, options: LoadOptions) -> Probe | None:
    """The probe that a model needs before it is loaded, if any. Hashes files that have not been hashed before.

    Raises CorruptWeights, ModelUnavailable where the folder holds what no model needs.
    """
    graph = graph_dtype(spec, options)
    folder = options.folder or hub.locate(spec, False, graph)
    own = options.folder is not None
    if not own and spec.folder is None and not hub.from_hub(spec):
        return None
    cached = folder.parent.name == "snapshots"  # in the Hub's cache, where files are links to what lies beside that
    try:
        texts = texts_of(folder, folder.parent.parent if cached else None)
    except (OSError, ValueError) as error:
        raise ModelUnavailable(spec.id, f"{folder} cannot be used: {error}; use a copy without that") from error
    if not own and has_gguf(spec, folder):  # converted in a process of its own, and its weights are pinned or hashed
        return None
    if own:
        spec = spec.model_copy(update={"sha256": {}, "gguf": None})
    digest = check_weights(spec, folder, options.cache.sha256, graph)
    if own and _is_ours(folder, digest):
        return None
    lines = [f"{text.relative_to(folder)} {options.cache.sha256(text)}" for text in texts]
    content = "\n".join([spec.kind, spec.served_by, str(graph), digest, *lines, *_libraries()])
    key = hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()
    return None if options.cache.is_probed(key) else Probe(spec, folder, graph, key)


def _is_ours(folder: Path, digest: str) -> bool:
    """Whether a version records that its training made these weights."""
    with suppress(OSError, ValueError):
        record = record_of(folder)
        return record is not None and record.weights_sha256 == digest
    return False


@cache
def _libraries() -> tuple[str, ...]:
    return tuple(f"{name} {version(name)}" for name in _LIBRARIES)


# In the process


def _serve(channel: Channel) -> None:
    """Open the model of the one request, and answer with the reason why it cannot be used, or none."""
    os.nice(_NICENESS)
    request = channel.receive(1 << 20)
    threading.Thread(target=_end_with, args=(channel,), daemon=True).start()
    spec, reason = ModelSpec.model_validate(request["spec"]), None
    try:
        _open(spec, Path(request["folder"]), request["graph"])
    except ModelError as error:
        reason = getattr(error, "reason", str(error))
    except MemoryError:
        reason = f"opening it takes more memory than it may; {next_step(spec)}"
    except Exception as error:  # a foreign folder can make the libraries raise anything
        reason = f"it cannot be opened ({cause_text(error)}); {next_step(spec)}"
    channel.send({"reason": reason})


def _end_with(channel: Channel) -> None:
    """End this process when the other side is gone."""
    with suppress(OSError):
        channel.wait_closed()
    os._exit(1)


def _open(spec: ModelSpec, folder: Path, graph: GraphDtype | None) -> None:
    files = weight_files(spec, folder, graph)
    require_whole(spec, folder, files)
    stored = sum((folder / name).stat().st_size for name in files)
    is_whole = stored <= WHOLE_BYTES or graph is not None
    with memory_limit(MEMORY_BYTES + 3 * stored * is_whole):
        if graph is None:
            _count(spec, folder, files)
        if is_whole:
            options = LoadOptions("cpu", dtype=graph, folder=folder)
            (load_generator if spec.kind == "generation" else load)(spec, options).close()


def _count(spec: ModelSpec, folder: Path, files: Sequence[str]) -> None:
    """Read a model's configuration and tokeniser, and build it without memory for its weights.

    Raises ModelUnavailable where it is larger than its weights, or cannot be read.
    """
    if spec.kind == "embedding" and is_static(folder):
        return
    shapes = [shape for name in files for _, shape in stored_shapes(folder / name)]
    tensors = SLACK * len(shapes) + MORE_TENSORS
    numbers = SLACK * sum(map(math.prod, shapes)) + MORE_NUMBERS
    first = module_folders(spec, folder)[0]
    if (layers := _most_layers(json.loads(read_regular(first / "config.json")))) > tensors:
        reason = f"its config.json tells of {layers} layers, and there are {len(shapes)} weights"
        raise ModelUnavailable(spec.id, reason)
    with _at_most(tensors, numbers, spec), quiet():
        if spec.kind == "generation":
            skeleton(served_config(spec, folder))
            GenerationTokenizer.read(folder, spec.id)
        else:
            AutoTokenizer.from_pretrained(first, local_files_only=True, trust_remote_code=False)
            encoder_skeleton(AutoConfig.from_pretrained(first, local_files_only=True, trust_remote_code=False))


def _most_layers(stated: Any) -> int:
    """The highest number of layers in a configuration: of all numbers whose name has "layer" in it."""
    if isinstance(stated, list):
        return max(map(_most_layers, stated), default=0)
    if not isinstance(stated, dict):
        return 0
    numbers = (value for name, value in stated.items() if "layer" in str(name) and isinstance(value, int))
    return max((*numbers, *map(_most_layers, stated.values())), default=0)


@contextmanager
def _at_most(tensors: int, numbers: int, spec: ModelSpec) -> Iterator[None]:
    """Raise ModelUnavailable as soon as more parameters are made in this context."""

    def note(module: Any, name: str, parameter: torch.Tensor) -> None:
        nonlocal tensors, numbers
        tensors, numbers = tensors - 1, numbers - parameter.numel()
        if min(tensors, numbers) < 0:
            reason = f"its config.json describes a larger model than its weights are; {next_step(spec)}"
            raise ModelUnavailable(spec.id, reason)

    with register_module_parameter_registration_hook(note):
        yield


if __name__ == "__main__":
    _serve(Channel.of_child())
