"""Reading a sentence-transformers folder into its module list, without running code from it.

Applies the entry's attention mask, end token and padding side.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding, Transformer
from tokenizers import Tokenizer, processors

from ..catalogue import ModelSpec
from ..errors import InvalidOption, ModelUnavailable, first_line
from ..loading.reading import first_fault, misfit, reading
from ..sandbox.templates import renderer
from ..weights.model_files import module_folders, next_step
from .base import refuse_transformer_options
from .tokenise import ChatTokenizer, TextTokenizer

MESSAGES = "message"
"""sentence-transformers' name for texts that go through a chat template."""
SUPPORTED = {"max_length", "add_special_tokens"}
IRRELEVANT = {"truncation", "padding", "padding_side", "pad_to_multiple_of", "return_attention_mask", "return_tensors"}
IRRELEVANT |= {"return_token_type_ids", "logits_to_keep"}
"""Tokeniser arguments that a folder may state: those that are applied, and those that change no vector here."""


def read_sentence_transformer(spec: ModelSpec, folder: Path, dtype: torch.dtype = torch.float32) -> SentenceTransformer:
    """Read a model onto the CPU, its first module in `dtype`. No network, no remote code, no pickle; silent.

    Raises ModelUnavailable.
    """
    _require_text(spec, folder)
    with reading(spec, folder, "point its entry at a sound copy") as faults:
        model = SentenceTransformer(
            str(folder),
            device="cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True, "dtype": dtype},
        )
    if table := static_embedding(model):
        _require_plain(spec, folder, table)
        table.to(dtype)
        return model.eval()
    transformer = text_transformer(spec, model)
    if fault := first_fault(faults, transformer.auto_model):
        raise misfit(spec, folder, fault)
    _require_vocabulary(spec, folder, transformer.tokenizer.backend_tokenizer)
    _require_known(spec, transformer)
    _apply(spec, transformer)
    if chat := transformer.modality_config.get(MESSAGES):
        transformer.modality_config["text"] = chat  # our token ids always count as text
    return model.eval()


def detach_modules(model: SentenceTransformer) -> list[torch.nn.Module]:
    """Remove the modules from the model, which a reference cycle with its card would keep alive, and return them."""
    modules = list(model.children())
    model._modules.clear()
    return modules


def static_embedding(model: SentenceTransformer) -> Any:
    """The StaticEmbedding at the start of the module list; None if something else is there."""
    first = next(iter(model.children()))
    return first if isinstance(first, StaticEmbedding) else None


def text_transformer(spec: ModelSpec, model: SentenceTransformer) -> Any:
    """The transformer at the start of the module list. Raises ModelUnavailable if there is none for text."""
    first = next(iter(model.children()))
    if not isinstance(first, Transformer) or not hasattr(first.tokenizer, "backend_tokenizer"):
        reason = f"it begins with {type(first).__name__}, and what is served begins with a transformer that has a Rust "
        raise ModelUnavailable(spec.id, f"{reason}tokeniser, or with a StaticEmbedding; choose another model")
    return first


def text_tokenizer(transformer: Any, max_tokens: int) -> TextTokenizer:
    """A tokeniser that treats texts as sentence-transformers does: as they are, or, if the folder says so, through the
    model's chat template with the prompt as the system's message."""
    backend = transformer.tokenizer.backend_tokenizer
    rows = transformer.auto_model.get_input_embeddings().weight.shape[0]
    if MESSAGES not in transformer.modality_config:
        special = _tokenizer_arguments(transformer).get("add_special_tokens", True)
        return TextTokenizer(backend, max_tokens, special, rows)
    formatter, processor = transformer.input_formatter, transformer.processor
    if isinstance(processor.chat_template, str):
        renderer(processor.chat_template).warm()
    arguments = transformer.processing_kwargs.get("chat_template") or {}
    not_fields = IRRELEVANT | SUPPORTED | {"restore_suffix"}
    fields = {name: value for name, value in arguments.items() if name not in not_fields}

    def render(texts: Sequence[str], prompt: str) -> list[str]:
        messages = formatter.batch_to_message("text", {"text": list(texts)})[1]["message"]
        messages = formatter.prepend_prompt_to_messages(messages, prompt) if prompt else messages
        try:
            rendered: list[str] = processor.apply_chat_template(messages, tokenize=False, **fields)
        except Exception as error:  # a template is a program of the model's author
            reason = f"the model's chat template refuses the text or its prompt: {first_line(error)}"
            raise InvalidOption(reason) from error
        return rendered

    return ChatTokenizer(backend, max_tokens, render, arguments.get("restore_suffix", True), rows)


def stated_length(transformer: Any) -> int | None:
    """The maximum length in tokens among the folder's tokeniser arguments, if any."""
    length: int | None = _tokenizer_arguments(transformer).get("max_length")
    return length


def _tokenizer_arguments(transformer: Any) -> dict[str, Any]:
    """The folder's tokeniser arguments, merged in sentence-transformers' order of precedence."""
    arguments = transformer.processing_kwargs
    chat = MESSAGES in transformer.modality_config
    places = ("common", "text", "chat_template") if chat else ("text", "common")
    return {name: value for place in places for name, value in (arguments.get(place) or {}).items()}


def _require_text(spec: ModelSpec, folder: Path) -> None:
    """Refuse a model that reads no text, before the libraries ask for packages that read images or sound."""
    try:
        stated = json.loads((module_folders(spec, folder)[0] / Transformer.config_file_name).read_text("utf-8"))
        kinds = set(stated["modality_config"])
    except (OSError, ValueError, LookupError, TypeError):  # not stated: it is text
        return
    if not kinds & {"text", MESSAGES}:
        reason = f"it reads {', '.join(sorted(kinds))}, and only texts are embedded here"
        raise ModelUnavailable(spec.id, f"{reason}; choose a model that reads text")


def _require_known(spec: ModelSpec, transformer: Any) -> None:
    """Refuse a folder with unsupported tokeniser arguments: texts would become other tokens."""
    arguments = transformer.processing_kwargs
    names = {name for place in ("common", "text") for name in arguments.get(place) or {}}
    if foreign := sorted(names - SUPPORTED - IRRELEVANT):
        reason = (
            f"its {Transformer.config_file_name} asks for {foreign[0]} in processing_kwargs, which is not done here"
        )
        raise ModelUnavailable(spec.id, f"{reason}; take it out there, or choose another model")


def _require_plain(spec: ModelSpec, folder: Path, table: Any) -> None:
    """Refuse an entry's options for transformers, and a tokeniser with tokens that the table has no rows for."""
    refuse_transformer_options(spec, "transformers, and it is a table of token vectors")
    _require_vocabulary(spec, folder, table.tokenizer)
    highest = max(table.tokenizer.get_vocab().values())
    if highest >= table.num_embeddings:
        reason = f"its tokeniser has token {highest}, its table {table.num_embeddings} rows"
        raise ModelUnavailable(spec.id, f"{reason}; use a copy whose files belong together")


def _require_vocabulary(spec: ModelSpec, folder: Path, backend: Tokenizer) -> None:
    """Refuse the empty tokeniser that transformers makes if its files are missing: all texts would be the same."""
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
        if MESSAGES in transformer.modality_config:
            raise ModelUnavailable(spec.id, "its chat template ends each text; take `append_eos` out of its entry")
        _append_eos(spec, transformer.tokenizer.backend_tokenizer, transformer.tokenizer.eos_token)
    if spec.padding_side is not None:
        transformer.tokenizer.padding_side = spec.padding_side


def _require_mask(spec: ModelSpec, model: Any) -> None:
    """Refuse a model that ignores the switch, by whether the first token's state depends on the next token.

    With and without padding, since a model may honour the switch in one case only.
    """
    ids = torch.tensor([[5, 6, 0], [5, 7, 0]])
    padded = {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 0]])}
    with torch.inference_mode():
        for features in (padded, {"input_ids": ids[:, :2]}):
            first, other = model(**features).last_hidden_state[:, 0]
            if torch.equal(first, other) != spec.causal:
                raise ModelUnavailable(spec.id, "its kind of model has one mask only; take `causal` out of its entry")


def _append_eos(spec: ModelSpec, backend: Tokenizer, eos: str | None) -> None:
    """Make the tokeniser append its end token, unless it does so already."""
    eos_id = backend.token_to_id(eos) if eos else None
    if eos is None or eos_id is None:
        raise ModelUnavailable(spec.id, "its tokeniser has no end token; take `append_eos` out of its entry")
    if backend.encode("a").ids[-1:] == [eos_id]:
        return
    template = processors.TemplateProcessing(single=f"$A {eos}", special_tokens=[(eos, eos_id)])
    own = backend.post_processor
    backend.post_processor = template if own is None else processors.Sequence([own, template])
