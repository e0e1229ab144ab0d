"""A sentence-transformers folder read into its module list, quietly and without anything that runs code.

The only module that loads through sentence-transformers; what it gives is plain torch modules and facts.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from transformers.utils import logging as hf_logging


def read_sentence_transformer(folder: Path) -> SentenceTransformer:
    """Read a model in float32 onto the CPU. No network, no remote code, no pickle; silent."""
    with _quiet():
        model = SentenceTransformer(
            str(folder),
            device="cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": torch.float32},
        )
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and load reports off stderr; errors are raised, and ours to report."""
    peer = logging.getLogger("sentence_transformers")
    level, verbosity = peer.level, hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    peer.setLevel(logging.ERROR)
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        peer.setLevel(level)
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
