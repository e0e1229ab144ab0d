"""A folder read into transformers' causal language model, quietly and without anything that runs code.

Owns the call into transformers, and what of its report is a fault. Does not know what the model is for.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..catalogue import ModelSpec
from ..encoders.load_report import first_fault, reported_faults
from ..errors import ModelUnavailable
from ..quiet import quiet
from ..weights import next_step

BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Ends of names that older repositories have among their weights, and models now make themselves."""


def read_network(spec: ModelSpec, folder: Path, config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Read a model onto the CPU in `dtype`. No network, no remote code, no pickle; silent.

    Raises ModelUnavailable, for weights that are missing, too many or of another shape too.
    """
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
        reason = f"the weights in {folder} do not fit its config.json: {fault}; {next_step(spec)}"
        raise ModelUnavailable(spec.id, reason)
    drop_unread(network)
    read: PreTrainedModel = network.eval().requires_grad_(False)
    return read


def drop_unread(network: PreTrainedModel) -> None:
    """Take out GPTBigCode's mask, context by context, which its attention does not read."""
    if network.config.model_type == "gpt_bigcode":
        network.base_model._buffers.pop("bias", None)
