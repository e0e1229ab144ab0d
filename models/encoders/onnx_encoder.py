"""The ONNX encoder: any embedding model exported to ONNX, with our own batches, padded on the right."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable, TextTooLong
from .base import EntryEncoder, Text, TextOptions, Tokens, Vectors, refuse_transformer_options, version_of
from .onnx_folder import OnnxFolder
from .onnx_session import Array, Graph, OnnxOptions
from .tokenise import TextTokenizer

POOLED = "sentence_embedding"
"""Name that exporters give to an output that the model's authors pooled themselves."""
REQUIRED = ("input_ids", "attention_mask")
FED = (*REQUIRED, "token_type_ids", "position_ids", "task_id")
INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class OnnxEncoder(EntryEncoder):
    """An Encoder over an ONNX graph in a model's folder. A graph with tasks gets one per batch."""

    def __init__(self, spec: ModelSpec, digest: str, folder: Path, options: OnnxOptions) -> None:
        """Raises ModelUnavailable, OutOfDeviceMemory."""
        refuse_transformer_options(spec, "torch models; in an ONNX graph and its tokenizer.json it is settled")
        facts = OnnxFolder(spec, folder)
        graph = Graph(spec, folder, options)
        version, tokenizer = version_of(digest, options.dtype), TextTokenizer(facts.tokenizer, facts.max_tokens)
        super().__init__(spec, version, tokenizer, facts.prompts, facts.default_prompt)
        self.dtype = options.dtype
        self.quantization = None
        self.device = graph.device
        self.packed = False
        self.weight_bytes = graph.weight_bytes
        self.notes = graph.notes
        self._inputs = GraphInputs(spec, graph, facts.pad_id)
        self._graph: Graph | None = graph
        trials = [self._trial(graph, task) for task in self.tasks or [None]]
        self._output, width, pooled = _choose_output(spec, trials[0])
        self.dimensions = min(width, facts.truncate_dim or width)
        if self._output != POOLED:
            facts.require_complete()
        self._pooling = None if pooled else facts.pooling()
        if spec.dimensions not in (None, self.dimensions):
            reason = f"its entry says {spec.dimensions} dimensions, its graph gives {self.dimensions}"
            raise ModelUnavailable(spec.id, f"{reason}; correct `dimensions` in its entry")

    def run_alone(self) -> None:
        """Run each text of a batch alone from now on, for a graph whose vectors depend on the others."""
        self.packed = True

    def close(self) -> None:
        self._graph = None

    def tokenize(self, texts: Sequence[Text], options: TextOptions) -> list[Tokens | TextTooLong]:
        task = self._names.task(options)
        tokenized = super().tokenize(texts, options)
        if task is None:
            return tokenized
        return [replace(item, task=self.tasks[task]) if isinstance(item, Tokens) else item for item in tokenized]

    def encode(self, batch: Sequence[Tokens], between_layers: Callable[[], None] | None = None) -> Vectors:
        """As Encoder.encode; a session cannot stop between layers. A text without tokens gets zeros."""
        vectors = np.zeros((len(batch), self.dimensions), dtype=np.float32)
        filled = [i for i, tokens in enumerate(batch) if len(tokens)]
        for part in [[i] for i in filled] if self.packed else [filled] if filled else []:
            vectors[part] = self._forward([batch[i] for i in part])
        return vectors

    def _trial(self, graph: Graph, task: str | None) -> dict[str, Array]:
        """A first run with a task: all outputs by name. An unknown task shows only here."""
        tokens = [item for item in self.tokenize(["a"], TextOptions(prompt="", task=task)) if isinstance(item, Tokens)]
        return graph.trial(self._inputs.arrays(tokens), task)

    def _forward(self, batch: Sequence[Tokens]) -> Vectors:
        if self._graph is None:
            raise RuntimeError(f"model {self.model!r} was closed")
        (output,) = self._graph.run(self._inputs.arrays(batch), [self._output])
        vectors: Vectors = output if self._pooling is None else self._pooling(output, batch)
        return vectors[:, : self.dimensions]


class GraphInputs:
    """Makes the input arrays of one graph."""

    def __init__(self, spec: ModelSpec, graph: Graph, pad_id: int) -> None:
        """Raises ModelUnavailable if the graph has unsupported inputs, or does not fit its entry."""
        reason = _misfit(spec, graph.inputs)
        if reason:
            raise ModelUnavailable(spec.id, f"{graph.name} {reason}")
        self._pad_id = pad_id
        self._dtypes = {name: INTEGERS[each.type] for name, each in graph.inputs.items()}
        self._task_shape = graph.inputs["task_id"].shape if "task_id" in graph.inputs else []

    def arrays(self, batch: Sequence[Tokens]) -> dict[str, Array]:
        """Arrays by name: (B, T), padded to the longest text; the task id () or (1,).

        Raises ValueError if the texts have different tasks.
        """
        tasks = {tokens.task for tokens in batch}
        if len(tasks) != 1:
            raise ValueError(f"all texts of a batch must have the same task, not {tasks}")
        lengths = np.array([len(tokens) for tokens in batch])
        columns = np.arange(lengths.max())
        mask = columns < lengths[:, None]
        ids = np.full(mask.shape, self._pad_id, dtype=np.int64)
        ids[mask] = np.concatenate([tokens.ids for tokens in batch])
        known: Mapping[str, Array] = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(ids),
            "position_ids": np.broadcast_to(columns, mask.shape),
            "task_id": np.full(self._task_shape, tasks.pop() or 0),
        }
        return {name: known[name].astype(dtype, order="C") for name, dtype in self._dtypes.items()}


def _misfit(spec: ModelSpec, inputs: Mapping[str, onnxruntime.NodeArg]) -> str | None:
    """Why the inputs cannot be fed, as a clause with the next step; None if they can."""
    foreign = [name for name in inputs if name not in FED]
    absent = [name for name in REQUIRED if name not in inputs]
    typed = {name: each.type for name, each in inputs.items() if each.type not in INTEGERS}
    fixed = [each.shape for name, each in inputs.items() if name != "task_id" and not _is_dynamic(each.shape)]
    if foreign or absent:
        return f"takes {', '.join(inputs)}; fed can be {', '.join(FED)}, of which it must take the first two"
    if typed:
        return f"takes {typed}, and only int64 and int32 are fed; export it with those"
    if fixed:
        return f"takes only the shape {fixed[0]}; export it with a dynamic batch and sequence"
    if "task_id" not in inputs:
        return "takes no task_id; take `tasks` out of its entry" if spec.tasks else None
    if spec.default_task is None:
        return "takes a task_id; name its `tasks` and a `default_task` in its entry"
    shape = inputs["task_id"].shape
    return None if shape in ([], [1]) else f"takes a task_id of shape {shape}, not [] or [1]; export it so"


def _is_dynamic(shape: Sequence[int | str | None]) -> bool:
    return not shape or (len(shape) == 2 and not any(isinstance(size, int) for size in shape))


def _choose_output(spec: ModelSpec, outputs: dict[str, Array]) -> tuple[str, int, bool]:
    """The output of a trial run that gives the vectors: its name, their dimensions, whether it is pooled already.

    Raises ModelUnavailable.
    """
    ranks = {name: value.ndim for name, value in outputs.items()}
    hidden = [name for name, rank in ranks.items() if rank == 3]
    vectors = [name for name, rank in ranks.items() if rank == 2]
    if ranks.get(POOLED) == 2:
        return POOLED, outputs[POOLED].shape[1], True
    if hidden:
        return hidden[0], outputs[hidden[0]].shape[2], False
    if len(vectors) == 1:
        return vectors[0], outputs[vectors[0]].shape[1], True
    shapes = {name: list(value.shape) for name, value in outputs.items()}
    reason = f"of its outputs {shapes} none is (texts, tokens, dimensions) or the only (texts, dimensions)"
    raise ModelUnavailable(spec.id, f"{reason}; export it with token embeddings or one vector a text")
