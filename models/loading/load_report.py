"""Faults from transformers' load report: weights that do not fit the configuration, which it only logs."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable, cause_text
from ..weights.model_files import next_step
from .quiet import quiet

_LOGGER = logging.getLogger("transformers.modeling_utils")
_ROW = re.compile(r"^(?P<key>\S.*?)\s*\|\s*(?:\x1b\[[0-9;]*m)*(?P<status>MISSING|MISMATCH|UNEXPECTED|CONVERSION)", re.M)
_NUMBERED = re.compile(r"^(?P<layers>.+?)\.(\d+|\{[\d, .]+\})\.")
"""Weights of several layers stand on one line, with the numbers of the layers in braces."""
UNUSED = ("pooler.",)
"""Prefixes of weights that may be missing: no module behind the transformer uses their output."""


@contextmanager
def reading(spec: ModelSpec, folder: Path, advice: str) -> Iterator[list[tuple[str, str]]]:
    """Read a model silently in this context -> the faults that are reported, as (weight's name, status).

    Raises ModelUnavailable, with this advice, for whatever the libraries raise.
    """
    faults: list[tuple[str, str]] = []

    def keep(record: logging.LogRecord) -> bool:
        faults.extend((row["key"], row["status"]) for row in _ROW.finditer(record.getMessage()))
        return False

    _LOGGER.addFilter(keep)
    _LOGGER.setLevel(logging.WARNING)
    try:
        with quiet():
            yield faults
    except MemoryError:
        raise
    except Exception as error:  # a foreign folder can make the libraries raise anything
        raise ModelUnavailable(spec.id, f"{folder} cannot be read ({cause_text(error)}); {advice}") from error
    finally:
        _LOGGER.removeFilter(keep)
        _LOGGER.setLevel(logging.NOTSET)


def misfit(spec: ModelSpec, folder: Path, fault: str) -> ModelUnavailable:
    """The error for weights with a fault."""
    return ModelUnavailable(spec.id, f"the weights in {folder} do not fit its config.json: {fault}; {next_step(spec)}")


def first_fault(faults: list[tuple[str, str]], model: torch.nn.Module) -> str | None:
    """The first fault that changes the model, as a clause; None if there is none.

    Unexpected weights (a language model's head) do not, except those of further layers.
    """
    modules = {name for name, _ in model.named_modules()}
    for key, status in faults:
        if status in ("MISSING", "MISMATCH", "CONVERSION") and not key.startswith(UNUSED):
            return f"{key} is {'missing' if status == 'MISSING' else 'of another shape'}"
        numbered = _NUMBERED.match(key)
        if status == "UNEXPECTED" and numbered and numbered["layers"] in modules:
            return f"{key} is one too many"
    return None
