"""The `mlbus` command: one module a command, and what they share."""

from .main import main

__all__ = ["main"]
