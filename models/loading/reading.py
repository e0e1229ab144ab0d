"""How models are read: one at a time, silently, and without faults that transformers only logs."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock, local

import torch
from transformers.utils import logging as hf_logging

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable, cause_text
from ..weights.model_files import next_step

_LOGGER = logging.getLogger("transformers.modeling_utils")
_ROW = re.compile(r"^(?P<key>\S.*?)\s*\|\s*(?:\x1b\[[0-9;]*m)*(?P<status>MISSING|MISMATCH|UNEXPECTED|CONVERSION)", re.M)
_NUMBERED = re.compile(r"^(?P<layers>.+?)\.(\d+|\{[\d, .]+\})\.")
"""Weights of several layers stand on one line, with the numbers of the layers in braces."""
UNUSED = ("pooler.",)
"""Prefixes of weights that may be missing: no module behind the transformer uses their output."""


class _ReadLock:
    """A re-entrant lock, held by a thread while it reads a model.

    transformers changes torch's default dtype for the whole process meanwhile, and then restores what it found: of two
    reads at once one could leave the other's dtype behind.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._own = local()

    def __enter__(self) -> None:
        lock = self._lock
        lock.acquire()
        self._own.held = [*getattr(self._own, "held", ()), lock]

    def __exit__(self, *_: object) -> None:
        self._own.held.pop().release()

    def abandon(self) -> None:
        """Let others read although a thread that hangs holds the lock."""
        self._lock = RLock()
        torch.set_default_dtype(torch.float32)


READ_LOCK = _ReadLock()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars and what the libraries log below errors off stderr."""
    peer = logging.getLogger("sentence_transformers")
    level, verbosity = peer.level, hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    peer.setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        peer.setLevel(level)
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


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
    """The error for weights that do not fit; fault: a clause."""
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
