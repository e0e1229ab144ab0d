"""Faults from transformers' load report: weights that do not fit the configuration, which it only logs."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils import logging as hf_logging

_LOGGER = "transformers.modeling_utils"
_ROW = re.compile(r"^(?P<key>\S.*?)\s*\|\s*(?:\x1b\[[0-9;]*m)*(?P<status>MISSING|MISMATCH|UNEXPECTED|CONVERSION)", re.M)
_NUMBERED = re.compile(r"^(?P<layers>.+?)\.(\d+|\{[\d, .]+\})\.")
"""Weights of several layers stand on one line, with the numbers of the layers in braces."""
UNUSED = ("pooler.",)
"""Prefixes of weights that may be missing: no module behind the transformer uses their output."""


@contextmanager
def reported_faults() -> Iterator[list[tuple[str, str]]]:
    """The (weight's name, status) rows reported for models that are read in this context."""
    faults: list[tuple[str, str]] = []
    logger = logging.getLogger(_LOGGER)
    handler = _Rows(faults)
    verbosity, propagates = hf_logging.get_verbosity(), logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.WARNING)
    try:
        yield faults
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
        logger.setLevel(logging.NOTSET)
        hf_logging.set_verbosity(verbosity)


class _Rows(logging.Handler):
    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__()
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        self._faults += [(row["key"], row["status"]) for row in _ROW.finditer(record.getMessage())]


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
