"""The typed asyncio client of every subject."""

from .client import CallOptions, EmbedCallOptions, MLClient

__all__ = ["CallOptions", "EmbedCallOptions", "MLClient"]
