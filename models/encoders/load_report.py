"""What transformers reports of weights that do not fit a model's configuration. It logs that, and goes on with noise.

Owns the reading of that report, and which of its lines matter. Loads nothing.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.utils import logging as hf_logging

_LOGGER = "transformers.modeling_utils"
_ROW = re.compile(r"^(?P<key>\S.*?)\s*\|\s*(?:\x1b\[[0-9;]*m)*(?P<status>MISSING|MISMATCH|UNEXPECTED|CONVERSION)", re.M)
_NUMBERED = re.compile(r"^(?P<layers>.+?)\.(\d+|\{[\d, .]+\})\.")
"""Alike weights of several layers stand on one line, their numbers in braces."""
UNUSED = ("pooler.",)
"""Beginnings of weights that may be missing: no module behind the transformer asks for what they give."""


@contextmanager
def reported_faults() -> Iterator[list[tuple[str, str]]]:
    """The (name of a weight, what is wrong with it) of models that are read in this context, by this thread."""
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
    """The first that makes the model another one, as a clause; None where there is none.

    Weights beyond the model (a language model's head) do not, but for those of further layers.
    """
    modules = {name for name, _ in model.named_modules()}
    for key, status in faults:
        if status in ("MISSING", "MISMATCH", "CONVERSION") and not key.startswith(UNUSED):
            return f"{key} is {'missing' if status == 'MISSING' else 'of another shape'}"
        numbered = _NUMBERED.match(key)
        if status == "UNEXPECTED" and numbered and numbered["layers"] in modules:
            return f"{key} is one too many"
    return None
