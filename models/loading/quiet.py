"""Keeps the libraries silent while models are read, and reads one model at a time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock, local

from transformers.utils import logging as hf_logging


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
        import torch

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
