"""Panics of Rust libraries: no Exception, so that they would end the event loop, and nobody would answer for them."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_as_errors(what: str) -> Iterator[None]:
    """Inside, a panic becomes a RuntimeError. what: what broke, such as "the tokeniser"."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{what} broke: {error!r}") from error
