"""The layers of a transformer: where between them somebody else may have a turn.

Owns the hooks that make a forward pass stop there. Does not know what is done meanwhile, or for whom.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Layers:
    """The layers of one model: its longest list of modules. For one thread, the one that runs the model.

    A model without such a list, or with a single layer, has nowhere to stop.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._between: Callable[[], None] | None = None
        for layer in _longest_list(model)[1:]:
            layer.register_forward_pre_hook(self._stop)

    @contextmanager
    def calling(self, between: Callable[[], None] | None) -> Iterator[None]:
        """Passes inside this context call `between` before each layer but the first.

        `between` may run the same model in a context of its own: a forward pass keeps nothing in the model.
        """
        outer, self._between = self._between, between
        try:
            yield
        finally:
            self._between = outer

    def _stop(self, *_: Any) -> None:
        if self._between is not None:
            self._between()


def _longest_list(model: torch.nn.Module) -> list[torch.nn.Module]:
    lists = [list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len, default=[])
