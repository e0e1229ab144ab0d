"""A sentence-transformers folder read into its module list, quietly and without anything that runs code.

The only module that loads through sentence-transformers; what it gives is plain torch modules and facts. Applies what
an entry says of the attention mask, the end token and the side of padding.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from tokenizers import Tokenizer, processors
from transformers.utils import logging as hf_logging

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable


def read_sentence_transformer(spec: ModelSpec, folder: Path, dtype: torch.dtype = torch.float32) -> SentenceTransformer:
    """Read a model onto the CPU, its transformer in `dtype`. No network, no remote code, no pickle; silent.

    Raises ModelUnavailable.
    """
    try:
        with _quiet():
            model = SentenceTransformer(
                str(folder),
                device="cpu",
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True, "dtype": dtype},
            )
    except MemoryError:
        raise
    except Exception as error:  # a foreign folder can make the libraries raise anything
        first_line = str(error).partition("\n")[0]
        reason = f"{folder} cannot be read ({type(error).__name__}: {first_line}); point its entry at a sound copy"
        raise ModelUnavailable(spec.id, reason) from error
    _apply(spec, text_transformer(spec, model))
    return model.eval()


def take_apart(model: SentenceTransformer) -> list[torch.nn.Module]:
    """Its modules, in order, out of the model: it and its card refer to each other, and would keep them in memory."""
    modules = list(model.children())
    model._modules.clear()
    return modules


def text_transformer(spec: ModelSpec, model: SentenceTransformer) -> Any:
    """The transformer that begins the module list. Raises ModelUnavailable where it is none that reads text."""
    first = next(iter(model.children()))
    if not isinstance(first, Transformer) or not hasattr(first.tokenizer, "backend_tokenizer"):
        reason = f"it begins with {type(first).__name__}, and only transformers with a Rust tokeniser are served"
        raise ModelUnavailable(spec.id, reason + " Choose another model")
    return first


def _apply(spec: ModelSpec, transformer: Any) -> None:
    if spec.causal is not None:
        # The masks ask the configuration, packed attention asks the layers.
        transformer.auto_model.config.is_causal = spec.causal
        for layer in transformer.auto_model.modules():
            if hasattr(layer, "is_causal"):
                layer.is_causal = spec.causal
    if spec.append_eos:
        _append_eos(spec, transformer.tokenizer.backend_tokenizer, transformer.tokenizer.eos_token)
    if spec.padding_side is not None:
        transformer.tokenizer.padding_side = spec.padding_side


def _append_eos(spec: ModelSpec, backend: Tokenizer, eos: str | None) -> None:
    """Let the tokeniser end every text with its end token, unless it does so already."""
    eos_id = backend.token_to_id(eos) if eos else None
    if eos is None or eos_id is None:
        raise ModelUnavailable(spec.id, "its tokeniser has no end token; take `append_eos` out of its entry")
    if backend.encode("a").ids[-1:] == [eos_id]:
        return
    template = processors.TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, eos_id)])
    own = backend.post_processor
    backend.post_processor = template if own is None else processors.Sequence([own, template])


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
