"""A run on disk, to go on from: one safetensors file of the weights and the optimisers' state, with how far it got."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(slots=True)
class Progress:
    """How far a run got.

    steps, tokens: trained on. epoch, window: the pass over the files, and its next window. width, rows: tokens of a
    window, windows of a step. cpu_s: processor time spent.
    """

    steps: int = 0
    tokens: int = 0
    epoch: int = 0
    window: int = 0
    width: int = 0
    rows: int = 0
    cpu_s: float = 0.0


def save(file: Path, model: nn.Module, optimisers: Sequence[Optimizer], progress: Progress) -> None:
    """Write the checkpoint whole or not at all."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors: dict[str, Tensor] = {f"weight/{name}": p.detach() for p, name in names.items()}
    for optimiser in optimisers:
        for parameter, state in optimiser.state.items():
            tensors |= {f"{key}/{names[parameter]}": value for key, value in state.items()}
    unfinished = file.with_suffix(".part")
    save_file(tensors, unfinished, metadata={"progress": json.dumps(asdict(progress))})
    unfinished.replace(file)


def load(file: Path, model: nn.Module, optimisers: Sequence[Optimizer]) -> Progress:
    """Put a checkpoint's tensors into the model and its optimisers."""
    parameters = dict(model.named_parameters())
    owner = {p: o for o in optimisers for group in o.param_groups for p in group["params"]}
    with safe_open(file, "pt") as stored:
        for entry in stored.keys():  # noqa: SIM118 - not a mapping
            key, name = entry.split("/")
            parameter, value = parameters[name], stored.get_tensor(entry)
            if key == "weight":
                parameter.data.copy_(value)
            else:
                owner[parameter].state[parameter][key] = value
        return Progress(**json.loads(stored.metadata()["progress"]))
