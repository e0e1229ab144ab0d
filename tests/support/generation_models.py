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

from bench.random_generators import write_base, write_codellama, write_llama, write_starcoder

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


@cache
def gemma2() -> Path:
    """A window in every second layer, scores of attention and of tokens capped, a scaling of its own."""
    capped = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 15.0}
    return _write("gemma2", write_base, model_type="gemma2", query_pre_attn_scalar=8, **WINDOW, **GEMMA, **capped)


@cache
def gemma3() -> Path:
    """Windows in five layers of six, which turn by another base, and norms of queries and keys."""
    sizes = {"num_hidden_layers": 6, "rope_local_base_freq": 100.0, "rope_theta": 5000.0}
    return _write("gemma3", write_base, model_type="gemma3_text", **WINDOW, **GEMMA, **sizes)


@cache
def mistral() -> Path:
    """A window in every layer."""
    return _write("mistral", write_base, model_type="mistral", **WINDOW)


def base(model_type: str, **fields: Any) -> Path:
    """Any other kind, written at each call; fields: of its configuration."""
    return _write(model_type, write_base, model_type=model_type, **fields)


WINDOW = {"sliding_window": 24}
"""Tokens: less than a block of the cache, and than most prompts of the tests."""
GEMMA = {"head_dim": 16}
ALL = {
    "codellama": codellama,
    "llama": llama,
    "starcoder": starcoder,
    "starcoder_multi_head": starcoder_multi_head,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "mistral": mistral,
}
"""By name, for parametrised tests."""


def _write(name: str, write: Callable[..., Path], **sizes: Any) -> Path:
    return write(_ROOT / name, **sizes)
