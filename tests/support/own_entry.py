"""Catalogue entries of a user's own, for the tests."""

from typing import Any

from models.catalogue import ModelSpec, load_catalogue


def own(kind: str = "embedding", **fields: Any) -> ModelSpec:
    """The entry `mine` with these fields."""
    return load_catalogue({"mine": {"kind": kind, **fields}}).get("mine")
