"""A folder read into transformers' causal language model, quietly and without anything that runs code.

Owns the call into transformers, and what of its report is a fault. Does not know what the model is for.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..catalogue import ModelSpec
from ..encoders.load_report import first_fault, reported_faults
from ..errors import ModelUnavailable
from ..loading.memory import stored_shapes
from ..loading.quiet import quiet
from ..weights.model_files import next_step, weight_files

BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Ends of names that older repositories have among their weights, and models now make themselves."""


def read_network(spec: ModelSpec, folder: Path, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Read a model onto the CPU in `dtype`. No network, no remote code, no pickle; silent.

    Raises ModelUnavailable, for weights that are missing, too many or of another shape too.
    """
    if fault := _shortage(config, [folder / name for name in weight_files(spec, folder)]):
        raise _unfit(spec, folder, fault)
    try:
        with quiet(), reported_faults() as faults:
            network: Any = AutoModelForCausalLM.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                trust_remote_code=False,
                local_files_only=True,
                use_safetensors=True,
            )
    except MemoryError:
        raise
    except Exception as error:  # a foreign folder can make the library raise anything
        first_line = str(error).partition("\n")[0]
        reason = f"{folder} cannot be read ({type(error).__name__}: {first_line}); {next_step(spec)}"
        raise ModelUnavailable(spec.id, reason) from error
    if fault := first_fault([row for row in faults if not row[0].endswith(BUFFERS)], network):
        raise _unfit(spec, folder, fault)
    drop_unread(network)
    read: PreTrainedModel = network.eval().requires_grad_(False)
    return read


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The architecture with shapes and no weights."""
    with torch.device("meta"), quiet():
        network: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            deepcopy(config), trust_remote_code=False
        )
    drop_unread(network)
    return network


def own_memory(network: PreTrainedModel) -> None:
    """Copy the parameters, which may lie in a mapped file: what is written to that would change the model."""
    for held in network.parameters():
        if held.device.type == "cpu" and not is_traceable_wrapper_subclass(held):
            held.data = held.data.clone()


def _shortage(config: PretrainedConfig, files: Sequence[Path]) -> str | None:
    """What the files lack, as a clause, where they hold fewer numbers than the model has: it would be filled up with
    random ones, as many as its configuration says, before the fault was told."""
    stored = dict(item for file in files for item in stored_shapes(file))
    if (layers := config.get_text_config().num_hidden_layers) > len(stored):
        return f"it has {layers} layers, and there are {len(stored)} weights"
    wanted = dict(skeleton(config).named_parameters())
    if sum(map(math.prod, stored.values())) >= sum(one.numel() for one in wanted.values()):
        return None
    name = next(name for name, one in wanted.items() if list(one.shape) != stored.get(name))
    return f"{name} is {'of another shape' if name in stored else 'missing'}"


def _unfit(spec: ModelSpec, folder: Path, fault: str) -> ModelUnavailable:
    return ModelUnavailable(spec.id, f"the weights in {folder} do not fit its config.json: {fault}; {next_step(spec)}")


def drop_unread(network: PreTrainedModel) -> None:
    """Take out GPTBigCode's mask, context by context, which its attention does not read."""
    if network.config.model_type == "gpt_bigcode":
        network.base_model._buffers.pop("bias", None)
