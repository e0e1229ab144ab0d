"""A trained model as a folder that sentence-transformers of every age, other readers of that layout and we load alike.

Owns the files: those of the folder that it was trained from, byte for byte where they can stay, with new weights under
the old names. Knows nothing of training.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

from ...catalogue import ModelSpec
from ...encoders.modules import MESSAGES
from ...encoders.onnx_folder import POOLING_FLAGS
from ...weights import model_files
from ...weights.versions import RECORD

LEGACY = "sentence_transformers.models."
"""Where the types of modules are named; every version of sentence-transformers resolves it."""
COPIED = {".json", ".jinja", ".model", ".py", ".txt"}
INDEX = "model.safetensors.index.json"
DENSE_FIELDS = ("in_features", "out_features", "bias", "activation_function")


def export(entry: ModelSpec, model: SentenceTransformer, base: Path, folder: Path) -> str:
    """Write a model that was read from `base` into an empty folder -> what check_weights gives for it.

    Weights in float32, under the names and in the files that they had. What sentence-transformers 6 writes in a new
    form is written in the one that all versions read. Nothing is synced. Raises ModelUnavailable, OSError.
    """
    modules = json.loads((base / "modules.json").read_bytes())
    for module, part in zip(modules, model.children(), strict=True):
        source, target = base / module["path"], folder / module["path"]
        _copy_companions(source, target)
        _write_weights(source, target, part)
        _write_legacy_config(target, part)
    _copy_companions(base, folder)
    _write_modules(folder, modules)
    return model_files.check_weights(entry.model_copy(update={"sha256": {}}), folder)


def _copy_companions(source: Path, target: Path) -> None:
    """The small files of a folder that is there; not those of a training before."""
    for file in sorted(source.iterdir()) if source.is_dir() else ():
        wanted = file.suffix in COPIED or file.name.startswith(("LICENSE", "NOTICE"))
        if wanted and file.is_file() and file.name not in (RECORD, INDEX) and not (target / file.name).exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / file.name)


def _write_weights(source: Path, target: Path, part: torch.nn.Module) -> None:
    """The weights of a module under the names that they have in `source`."""
    inner: Any = part.auto_model if isinstance(part, Transformer) else part
    state = inner.state_dict()
    missing = {name for name, _ in inner.named_parameters()}
    files = sorted(source.glob("*.safetensors"))
    total = 0
    for file in files:
        tensors = {}
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118  no mapping
                old = stored.get_tensor(name)
                own = _own_name(name, old, state)
                tensors[name] = _plain(old if own is None else state[own])
                missing.discard(own or "")
                total += tensors[name].nbytes
        save_file(tensors, target / file.name, {"format": "pt"})
    if missing:
        _write_under_own_names(target, inner, files)
    elif (source / INDEX).is_file():
        index = json.loads((source / INDEX).read_bytes())
        _write_json(target / INDEX, {**index, "metadata": {**index.get("metadata", {}), "total_size": total}})


def _own_name(name: str, stored: torch.Tensor, state: Mapping[str, torch.Tensor]) -> str | None:
    """What the model calls a tensor, which may be stored with prefixes; None for one that it has no use for."""
    while name not in state and "." in name:
        name = name.partition(".")[2]
    return name if name in state and state[name].shape == stored.shape else None


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """In float32 if it is a floating-point one, and with memory of its own."""
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous().clone()


def _write_under_own_names(target: Path, inner: Any, files: list[Path]) -> None:
    """For architectures whose stored names the library changes when it reads them: let it change them back."""
    for file in files:
        (target / file.name).unlink()
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        inner.save_pretrained(scratch)
        for file in Path(scratch).glob("*.safetensors*"):
            file.replace(target / file.name)


def _write_legacy_config(target: Path, part: torch.nn.Module) -> None:
    """The configuration of a module as versions before 6 read it; what has that form already stays as it is."""
    if isinstance(part, Transformer):
        _keep_float32(target / "config.json")
        if not (part.processing_kwargs or MESSAGES in part.modality_config):  # which that form has no words for
            _rewrite(target / "sentence_bert_config.json", "transformer_task", _sentence_config(part))
    elif isinstance(part, Pooling):
        _rewrite(target / "config.json", "pooling_mode", _pooling_config(part))
    elif isinstance(part, Dense):
        fields = part.get_config_dict()  # type: ignore[no-untyped-call]
        _rewrite(target / "config.json", "module_input_name", {name: fields[name] for name in DENSE_FIELDS})


def _sentence_config(part: Any) -> dict[str, Any]:
    return {"max_seq_length": part.max_seq_length, "do_lower_case": bool(getattr(part, "do_lower_case", False))}


def _pooling_config(part: Any) -> dict[str, Any]:
    modes = [part.pooling_mode] if isinstance(part.pooling_mode, str) else part.pooling_mode
    flags = {flag: mode in modes for flag, mode in POOLING_FLAGS.items()}
    width = part.get_config_dict()["embedding_dimension"]
    return {"word_embedding_dimension": width, **flags, "include_prompt": part.include_prompt}


def _rewrite(file: Path, new_form: str, legacy: dict[str, Any]) -> None:
    """Replace a configuration that has a field of the new form, or is not there."""
    if not file.is_file() or new_form in json.loads(file.read_bytes()):
        _write_json(file, legacy)


def _keep_float32(file: Path) -> None:
    """Let the configuration of a transformer say in which dtype its weights now are, where it says one."""
    config = json.loads(file.read_bytes())
    stated = {name: "float32" for name in ("dtype", "torch_dtype") if config.get(name)}
    if {**config, **stated} != config:
        _write_json(file, {**config, **stated})


def _write_modules(folder: Path, modules: list[dict[str, Any]]) -> None:
    """The list of modules, each type by the name that it had first."""
    legacy = [{**module, "type": LEGACY + str(module["type"]).rpartition(".")[2]} for module in modules]
    if legacy != modules:
        _write_json(folder / "modules.json", legacy)


def _write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
