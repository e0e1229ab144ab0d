"""What an ONNX graph is fed: the inputs it asks for, checked at load, and their arrays for a batch.

Knows the names that exporters of embedding models use. Pads on the right: with a mask, the side makes no difference.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable
from .base import Tokens
from .onnx_session import Array, Graph

REQUIRED = ("input_ids", "attention_mask")
FED = (*REQUIRED, "token_type_ids", "position_ids", "task_id")
INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


class GraphInputs:
    """Makes the inputs of one graph."""

    def __init__(self, spec: ModelSpec, graph: Graph, pad_id: int) -> None:
        """Raises ModelUnavailable where the graph asks for what cannot be fed, or does not fit its entry."""
        reason = _misfit(spec, graph.inputs)
        if reason:
            raise ModelUnavailable(spec.id, f"{graph.name} {reason}")
        self._pad_id = pad_id
        self._dtypes = {name: INTEGERS[each.type] for name, each in graph.inputs.items()}
        self._task_shape = graph.inputs["task_id"].shape if "task_id" in graph.inputs else []

    def arrays(self, batch: Sequence[Tokens]) -> dict[str, Array]:
        """By name: (B, T) padded to the longest of the batch, and the one task, () or (1,), of all its texts.

        Raises ValueError where the texts have different tasks.
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
    """What is wrong with the inputs, as a clause with the next step; None where all can be fed."""
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
