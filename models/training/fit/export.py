"""Write a trained model as a folder that every version of sentence-transformers can load.

It has the files of the folder it was trained from, unchanged where possible, and new weights under the old names.
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
"""The prefix of module types that every version of sentence-transformers resolves."""
COPIED = {".json", ".jinja", ".model", ".py", ".txt"}
INDEX = "model.safetensors.index.json"
DENSE_FIELDS = ("in_features", "out_features", "bias", "activation_function")


def export(entry: ModelSpec, model: SentenceTransformer, base: Path, folder: Path) -> str:
    """Write a model that was read from `base` into an empty folder -> its digest, as check_weights computes it.

    Weights are float32, in the files and under the names they had. Configurations have the form that all versions of
    sentence-transformers read, not the new one of version 6. Nothing is synced. Raises ModelUnavailable, OSError.
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
    """Copy the small files of a folder if it exists, except those of an earlier training."""
    for file in sorted(source.iterdir()) if source.is_dir() else ():
        wanted = file.suffix in COPIED or file.name.startswith(("LICENSE", "NOTICE"))
        if wanted and file.is_file() and file.name not in (RECORD, INDEX) and not (target / file.name).exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / file.name)


def _write_weights(source: Path, target: Path, part: torch.nn.Module) -> None:
    """Write a module's weights under the names they have in `source`."""
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
    """The model's name of a tensor, which may be stored with prefixes; None for one that the model does not use."""
    while name not in state and "." in name:
        name = name.partition(".")[2]
    return name if name in state and state[name].shape == stored.shape else None


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A copy, in float32 if it is a floating-point tensor."""
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous().clone()


def _write_under_own_names(target: Path, inner: Any, files: list[Path]) -> None:
    """For architectures whose stored names the library changes on loading: let it change them back."""
    for file in files:
        (target / file.name).unlink()
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        inner.save_pretrained(scratch)
        for file in Path(scratch).glob("*.safetensors*"):
            file.replace(target / file.name)


def _write_legacy_config(target: Path, part: torch.nn.Module) -> None:
    """Write a module's configuration as versions before 6 read it, unless it has that form already."""
    if isinstance(part, Transformer):
        _state_float32(target / "config.json")
        if not (part.processing_kwargs or MESSAGES in part.modality_config):  # not expressible there
            lowers = bool(getattr(part, "do_lower_case", False))
            sentences = {"max_seq_length": part.max_seq_length, "do_lower_case": lowers}
            _rewrite(target / "sentence_bert_config.json", "transformer_task", sentences)
    elif isinstance(part, Pooling):
        _rewrite(target / "config.json", "pooling_mode", _pooling_config(part))
    elif isinstance(part, Dense):
        fields = part.get_config_dict()  # type: ignore[no-untyped-call]
        _rewrite(target / "config.json", "module_input_name", {name: fields[name] for name in DENSE_FIELDS})


def _pooling_config(part: Any) -> dict[str, Any]:
    modes = [part.pooling_mode] if isinstance(part.pooling_mode, str) else part.pooling_mode
    flags = {flag: mode in modes for flag, mode in POOLING_FLAGS.items()}
    width = part.get_config_dict()["embedding_dimension"]
    return {"word_embedding_dimension": width, **flags, "include_prompt": part.include_prompt}


def _rewrite(file: Path, new_form: str, legacy: dict[str, Any]) -> None:
    """Replace a configuration that is missing or has a field of the new form."""
    if not file.is_file() or new_form in json.loads(file.read_bytes()):
        _write_json(file, legacy)


def _state_float32(file: Path) -> None:
    """Set the dtype in a transformer's configuration to that of its new weights, where it states one."""
    config = json.loads(file.read_bytes())
    stated = {name: "float32" for name in ("dtype", "torch_dtype") if config.get(name)}
    if {**config, **stated} != config:
        _write_json(file, {**config, **stated})


def _write_modules(folder: Path, modules: list[dict[str, Any]]) -> None:
    """Write the list of modules, each type under its legacy name."""
    legacy = [{**module, "type": LEGACY + str(module["type"]).rpartition(".")[2]} for module in modules]
    if legacy != modules:
        _write_json(folder / "modules.json", legacy)


def _write_json(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
