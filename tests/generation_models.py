"""Causal LMs with random weights for the tests of text generation: written once for all of a process's tests.

Every one is a folder in the exact layout of its kind, tokenizer included, and its text never ends by itself.
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from bench.random_generators import write_codellama, write_llama, write_starcoder

_ROOT = Path(tempfile.mkdtemp(prefix="mlbus-generators-"))
atexit.register(shutil.rmtree, _ROOT, ignore_errors=True)


@cache
def codellama() -> Path:
    """Multi-head attention, SentencePiece-BPE, tokens to fill in the middle, and a chat template."""
    return _write("codellama", write_codellama)


@cache
def llama() -> Path:
    """Grouped-query attention, SentencePiece-BPE, no other form than a plain prompt."""
    return _write("llama", write_llama)


@cache
def starcoder() -> Path:
    """Multi-query attention, byte-level BPE, tokens to fill in the middle, a tied head."""
    return _write("starcoder", write_starcoder)


@cache
def starcoder_multi_head() -> Path:
    """The same with a key and a value for each head."""
    return _write("starcoder-multi-head", write_starcoder, multi_query=False)


ALL = {"codellama": codellama, "llama": llama, "starcoder": starcoder, "starcoder_multi_head": starcoder_multi_head}
"""By name, for parametrised tests."""


def _write(name: str, write: Callable[..., Path], **sizes: Any) -> Path:
    return write(_ROOT / name, **sizes)
