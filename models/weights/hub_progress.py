"""How far a download is, told to a function instead of drawn. Knows huggingface_hub's progress bars, nothing else."""

from collections.abc import Callable
from threading import Lock
from typing import Any

from huggingface_hub.utils.tqdm import tqdm

OnBytes = Callable[[int, int], None]
"""Hears how many bytes have come, of how many."""


def telling(on_bytes: OnBytes, total: int) -> type[tqdm]:
    """A class for `tqdm_class` that draws nothing, which in a service would be in its log, and tells how far it is.

    huggingface_hub counts the bytes of one download on several bars, on some of them later; the first count is told.
    """
    most, lock = 0, Lock()

    class Telling(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._counts_bytes = options.get("unit") == "B"
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            nonlocal most
            with lock:
                self.n += n or 0
                if self._counts_bytes and self.n > most:
                    most = min(int(self.n), total)
                    on_bytes(most, total)

    return Telling
