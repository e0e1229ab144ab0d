"""all-MiniLM-L6-v2, or any BERT, as an ONNX graph: what the ONNX encoder is measured and tested on.

Writes the graph and copies the small files beside it. Knows no runtime.
"""

import logging
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel
from transformers.utils.logging import disable_progress_bar

GRAPH = "onnx/model.onnx"
SMALL_FILES = ("*.json", "1_Pooling/*.json")
LONGEST = 512


class _HiddenStates(torch.nn.Module):
    """A BERT that gives its last hidden states (B, T, D) and nothing else."""

    def __init__(self, bert: torch.nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        hidden: Tensor = self.bert(input_ids, attention_mask, token_type_ids=token_type_ids).last_hidden_state
        return hidden


def export(model: Path, folder: Path) -> Path:
    """Write the transformer in `model` to `folder` as float32 with external data; -> the folder.

    Batch and sequence are dynamic, inputs int64 (B, T), the output `last_hidden_state` (B, T, D).
    """
    graph = folder / GRAPH
    graph.parent.mkdir(parents=True)
    for file in (file for pattern in SMALL_FILES for file in model.glob(pattern)):
        copy = folder / file.relative_to(model)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(file, copy)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    bert = AutoModel.from_pretrained(model, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True)
    ids = torch.tensor([[101, 7592, 2088, 102], [101, 7592, 102, 0]])
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=LONGEST)}
    with warnings.catch_warnings():
        _silence()
        torch.onnx.export(
            _HiddenStates(bert).eval(),
            (ids, (ids > 0).long(), torch.zeros_like(ids)),
            graph,
            input_names=["input_ids", "attention_mask", "token_type_ids"],
            output_names=["last_hidden_state"],
            dynamic_shapes=(shape, shape, shape),
            dynamo=True,
            external_data=True,
            verbose=False,
        )
    return folder


def _silence() -> None:
    """What the exporter says of itself; all else stays."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "# The axis name", UserWarning)
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
