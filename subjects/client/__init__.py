"""The typed asyncio client of every subject. Importing the package is cheap, as importing `subjects` is."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import CallOptions, EmbedCallOptions, MLClient

__all__ = ["CallOptions", "EmbedCallOptions", "MLClient"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return getattr(importlib.import_module(".client", __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
