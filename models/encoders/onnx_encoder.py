"""The ONNX encoder: any embedding model exported to ONNX, fed with our own padded batches.

Owns the way from texts to pooled vectors around a graph. Does not choose batches, cut or normalise vectors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ..catalogue import ModelSpec, Quantization
from ..errors import ModelUnavailable, TextTooLong
from .base import TextOptions, Tokens, Vectors, version_of
from .choices import Choices
from .onnx_folder import OnnxFolder
from .onnx_inputs import GraphInputs
from .onnx_pooling import POOLED, chosen_output
from .onnx_session import Array, Graph, OnnxOptions
from .tokenise import TextTokenizer

__all__ = ["OnnxEncoder", "OnnxOptions"]


class OnnxEncoder:
    """An Encoder over an ONNX graph in a model's folder, with a task a batch where the graph takes one."""

    def __init__(self, spec: ModelSpec, digest: str, folder: Path, options: OnnxOptions) -> None:
        """Raises ModelUnavailable, OutOfDeviceMemory."""
        _require_own(spec)
        facts = OnnxFolder(spec, folder)
        graph = Graph(spec, folder, options)
        self.model = spec.id
        self.version = version_of(digest, options.dtype)
        self.dtype = options.dtype
        self.quantization: Quantization | None = None
        self.device = graph.device
        self.packed = False
        self.weight_bytes = graph.weight_bytes
        self.normalizes = spec.normalize
        self.max_tokens = facts.max_tokens
        self.matryoshka: Sequence[int] = spec.matryoshka
        self.prompts: Mapping[str, str] = MappingProxyType(facts.prompts)
        self.tasks: Mapping[str, int] = MappingProxyType(spec.tasks)
        self.notes = graph.notes
        self._choices = Choices(self.prompts, facts.default_prompt, self.tasks, spec.default_task)
        self._tokenizer = TextTokenizer(facts.tokenizer, self.max_tokens)
        self._inputs = GraphInputs(spec, graph, facts.pad_id)
        self._graph: Graph | None = graph
        trials = [self._trial(graph, task) for task in self.tasks or [None]]
        self._output, width, pooled = chosen_output(spec, trials[0])
        self.dimensions = min(width, facts.truncate_dim or width)
        if self._output != POOLED:
            facts.require_complete()
        self._pooling = None if pooled else facts.pooling()
        if spec.dimensions not in (None, self.dimensions):
            reason = f"its entry says {spec.dimensions} dimensions, its graph gives {self.dimensions}"
            raise ModelUnavailable(spec.id, f"{reason}; correct `dimensions` in its entry")

    def run_alone(self) -> None:
        """Run each text of a batch by itself from now on, as a graph needs whose vectors depend on the others."""
        self.packed = True

    def close(self) -> None:
        """See Encoder.close."""
        self._graph = None

    def tokenize(self, texts: Sequence[str], options: TextOptions) -> list[Tokens | TextTooLong]:
        """See Encoder.tokenize."""
        task = self._choices.task(options)
        tokenized = self._tokenizer(texts, self._choices.prompt(options), options.truncate)
        if task is None:
            return tokenized
        return [replace(item, task=self.tasks[task]) if isinstance(item, Tokens) else item for item in tokenized]

    def encode(self, batch: Sequence[Tokens], between_layers: Callable[[], None] | None = None) -> Vectors:
        """See Encoder.encode. A session cannot be stopped between layers. A text without any token gets zeros."""
        vectors = np.zeros((len(batch), self.dimensions), dtype=np.float32)
        filled = [i for i, tokens in enumerate(batch) if len(tokens)]
        for run in [[i] for i in filled] if self.packed else [filled] if filled else []:
            vectors[run] = self._forward([batch[i] for i in run])
        return vectors

    def _trial(self, graph: Graph, task: str | None) -> dict[str, Array]:
        """A first run with a task, all outputs by name; that a graph has a task shows only when it is run."""
        tokens = [item for item in self.tokenize(["a"], TextOptions(prompt="", task=task)) if isinstance(item, Tokens)]
        return graph.trial(self._inputs.arrays(tokens), task)

    def _forward(self, batch: Sequence[Tokens]) -> Vectors:
        if self._graph is None:
            raise RuntimeError(f"model {self.model!r} was closed")
        (output,) = self._graph.run(self._inputs.arrays(batch), [self._output])
        vectors: Vectors = output if self._pooling is None else self._pooling(output, batch)
        return vectors[:, : self.dimensions]


def _require_own(spec: ModelSpec) -> None:
    """Raises ModelUnavailable where the entry states what a graph, or the tokeniser beside it, has settled already."""
    settled = {"causal": spec.causal, "append_eos": spec.append_eos, "padding_side": spec.padding_side}
    stated = [field for field, value in settled.items() if value is not None]
    if stated:
        reason = f"`{stated[0]}` is for torch models; in an ONNX graph and its tokenizer.json it is settled"
        raise ModelUnavailable(spec.id, f"{reason}; take it out of its entry")
