"""A sentence-transformers folder read into its module list, quietly and without anything that runs code.

The only module that loads through sentence-transformers; what it gives is plain torch modules and facts. Applies what
an entry says of the attention mask, the end token and the side of padding.
"""

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from tokenizers import Tokenizer, processors

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable
from ..quiet import quiet
from ..weights import next_step
from .load_report import first_fault, reported_faults


def read_sentence_transformer(spec: ModelSpec, folder: Path, dtype: torch.dtype = torch.float32) -> SentenceTransformer:
    """Read a model onto the CPU, its transformer in `dtype`. No network, no remote code, no pickle; silent.

    Raises ModelUnavailable.
    """
    try:
        with quiet(), reported_faults() as faults:
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
    transformer = text_transformer(spec, model)
    if fault := first_fault(faults, transformer.auto_model):
        raise ModelUnavailable(
            spec.id, f"the weights in {folder} do not fit its config.json: {fault}; {next_step(spec)}"
        )
    _require_vocabulary(spec, folder, transformer.tokenizer.backend_tokenizer)
    _apply(spec, transformer)
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
        raise ModelUnavailable(spec.id, f"{reason}; choose another model")
    return first


def _require_vocabulary(spec: ModelSpec, folder: Path, backend: Tokenizer) -> None:
    """A tokeniser whose files are missing is made without a word in it, and takes every text for the same."""
    known = set(backend.encode("def the return of 1", add_special_tokens=False).tokens)
    if len(known) < 2:
        raise ModelUnavailable(spec.id, f"the tokeniser in {folder} knows no words; {next_step(spec)}")


def _apply(spec: ModelSpec, transformer: Any) -> None:
    if spec.causal is not None:
        # The masks ask the configuration, packed attention asks the layers.
        transformer.auto_model.config.is_causal = spec.causal
        for layer in transformer.auto_model.modules():
            if hasattr(layer, "is_causal"):
                layer.is_causal = spec.causal
        _require_mask(spec, transformer.auto_model)
    if spec.append_eos:
        _append_eos(spec, transformer.tokenizer.backend_tokenizer, transformer.tokenizer.eos_token)
    if spec.padding_side is not None:
        transformer.tokenizer.padding_side = spec.padding_side


def _require_mask(spec: ModelSpec, model: Any) -> None:
    """Refuse a model that has no use for the switch: what a first token becomes must hang on the next one, or not.

    With padding and without: a model may heed the one switch and not the other.
    """
    ids = torch.tensor([[5, 6, 0], [5, 7, 0]])
    padded = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 0]])}
    with torch.inference_mode():
        for features in (padded, {"input_ids": ids[:, :2]}):
            first, other = model(**features).last_hidden_state[:, 0]
            if torch.equal(first, other) != spec.causal:
                raise ModelUnavailable(spec.id, "its kind of model has one mask only; take `causal` out of its entry")


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
