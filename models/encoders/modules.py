"""A sentence-transformers folder read into its module list, quietly and without anything that runs code.

The only module that loads through sentence-transformers; what it gives is plain torch modules and facts. Applies what
an entry says of the attention mask, the end token and the side of padding.
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
from ..errors import ModelUnavailable, TemplateRefused
from ..loading.quiet import quiet
from ..sandbox.templates import renderer
from ..weights.model_files import module_folders, next_step
from .load_report import first_fault, reported_faults
from .tokenise import ChatTokenizer, TextTokenizer

MESSAGES = "message"
"""What sentence-transformers calls texts that it puts through a chat template."""
HONOURED = {"max_length", "add_special_tokens"}
SETTLED = {"truncation", "padding", "padding_side", "pad_to_multiple_of", "return_attention_mask", "return_tensors"}
SETTLED |= {"return_token_type_ids", "logits_to_keep"}
"""What a folder may ask of its tokeniser: the former is done, the latter changes no vector here."""


def read_sentence_transformer(spec: ModelSpec, folder: Path, dtype: torch.dtype = torch.float32) -> SentenceTransformer:
    """Read a model onto the CPU, its first module in `dtype`. No network, no remote code, no pickle; silent.

    Raises ModelUnavailable.
    """
    _require_text(spec, folder)
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
    if table := static_embedding(model):
        _require_plain(spec, folder, table)
        table.to(dtype)
        return model.eval()
    transformer = text_transformer(spec, model)
    if fault := first_fault(faults, transformer.auto_model):
        raise ModelUnavailable(
            spec.id, f"the weights in {folder} do not fit its config.json: {fault}; {next_step(spec)}"
        )
    _require_vocabulary(spec, folder, transformer.tokenizer.backend_tokenizer)
    _require_known(spec, transformer)
    _apply(spec, transformer)
    if chat := transformer.modality_config.get(MESSAGES):
        transformer.modality_config["text"] = chat  # token ids of ours do not say that they came through the template
    return model.eval()


def take_apart(model: SentenceTransformer) -> list[torch.nn.Module]:
    """Its modules, in order, out of the model: it and its card refer to each other, and would keep them in memory."""
    modules = list(model.children())
    model._modules.clear()
    return modules


def static_embedding(model: SentenceTransformer) -> Any:
    """The table of token vectors that begins the module list; None where something else does."""
    first = next(iter(model.children()))
    return first if isinstance(first, StaticEmbedding) else None


def text_transformer(spec: ModelSpec, model: SentenceTransformer) -> Any:
    """The transformer that begins the module list. Raises ModelUnavailable where it is none that reads text."""
    first = next(iter(model.children()))
    if not isinstance(first, Transformer) or not hasattr(first.tokenizer, "backend_tokenizer"):
        reason = f"it begins with {type(first).__name__}, and what is served begins with a transformer that has a Rust "
        raise ModelUnavailable(spec.id, f"{reason}tokeniser, or with a StaticEmbedding; choose another model")
    return first


def text_tokenizer(transformer: Any, max_tokens: int) -> TextTokenizer:
    """Makes of texts what sentence-transformers would: as they are, or where the folder says so through the chat
    template of the model, the prompt as the system's turn."""
    backend = transformer.tokenizer.backend_tokenizer
    if MESSAGES not in transformer.modality_config:
        return TextTokenizer(backend, max_tokens, _asked(transformer).get("add_special_tokens", True))
    formatter, processor = transformer.input_formatter, transformer.processor
    if isinstance(processor.chat_template, str):
        renderer(processor.chat_template).warm()
    asked = transformer.processing_kwargs.get("chat_template") or {}
    fields = {name: value for name, value in asked.items() if name not in SETTLED | HONOURED | {"restore_suffix"}}

    def write(texts: Sequence[str], prompt: str) -> list[str]:
        turns = formatter.batch_to_message("text", {"text": list(texts)})[1]["message"]
        turns = formatter.prepend_prompt_to_messages(turns, prompt) if prompt else turns
        try:
            written: list[str] = processor.apply_chat_template(turns, tokenize=False, **fields)
        except Exception as error:  # a template is a program of the model's author
            raise TemplateRefused(str(error).partition("\n")[0]) from error
        return written

    return ChatTokenizer(backend, max_tokens, write, asked.get("restore_suffix", True))


def asked_length(transformer: Any) -> int | None:
    """The length in tokens that the folder asks of its tokeniser; None where it does not."""
    length: int | None = _asked(transformer).get("max_length")
    return length


def _asked(transformer: Any) -> dict[str, Any]:
    """What the folder asks of its tokeniser, whatever the place, as sentence-transformers puts it together."""
    asked = transformer.processing_kwargs
    chat = MESSAGES in transformer.modality_config
    places = ("common", "text", "chat_template") if chat else ("text", "common")
    return {name: value for place in places for name, value in (asked.get(place) or {}).items()}


def _require_text(spec: ModelSpec, folder: Path) -> None:
    """Refuse a model that reads no text, before the libraries ask for what reads pictures or sound."""
    try:
        stated = json.loads((module_folders(spec, folder)[0] / Transformer.config_file_name).read_text("utf-8"))
        kinds = set(stated["modality_config"])
    except (OSError, ValueError, LookupError, TypeError):  # not stated, and then it is text
        return
    if not kinds & {"text", MESSAGES}:
        reason = f"it reads {', '.join(sorted(kinds))}, and only texts are embedded here"
        raise ModelUnavailable(spec.id, f"{reason}; choose a model that reads text")


def _require_known(spec: ModelSpec, transformer: Any) -> None:
    """Refuse a folder that asks of its tokeniser what is not done here, since texts would become other tokens."""
    asked = transformer.processing_kwargs
    names = {name for place in ("common", "text") for name in asked.get(place) or {}}
    if foreign := sorted(names - HONOURED - SETTLED):
        reason = (
            f"its {Transformer.config_file_name} asks for {foreign[0]} in processing_kwargs, which is not done here"
        )
        raise ModelUnavailable(spec.id, f"{reason}; take it out there, or choose another model")


def _require_plain(spec: ModelSpec, folder: Path, table: Any) -> None:
    """Refuse what an entry asks of a transformer, and a tokeniser with tokens that the table has no rows for."""
    asked = {"causal": spec.causal, "append_eos": spec.append_eos, "padding_side": spec.padding_side}
    if stated := [name for name, value in asked.items() if value is not None]:
        raise ModelUnavailable(
            spec.id, f"`{stated[0]}` is for transformers, and it is a table of token vectors; take it out of its entry"
        )
    _require_vocabulary(spec, folder, table.tokenizer)
    highest = max(table.tokenizer.get_vocab().values())
    if highest >= table.num_embeddings:
        reason = f"its tokeniser has token {highest}, its table {table.num_embeddings} rows"
        raise ModelUnavailable(spec.id, f"{reason}; use a copy whose files belong together")


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
        if MESSAGES in transformer.modality_config:
            raise ModelUnavailable(spec.id, "its chat template ends each text; take `append_eos` out of its entry")
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
