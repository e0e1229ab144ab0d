"""Reading models without a word on stderr: errors are raised, and ours to report."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

from transformers.utils import logging as hf_logging

READING = RLock()
"""transformers changes torch's default dtype for the whole process while it reads a model, and puts back what it found:
two that read at once could leave the other's behind."""


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
