"""The `mlbus` command: a module for each family of commands, and the parts that they share."""

from .main import main

__all__ = ["main"]
