"""Which files in a folder are a model's weights, and checks that they are complete, undamaged and the pinned ones.

Only safetensors, ONNX graphs and GGUF files are accepted: a pickle can run code when read.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from ..catalogue import GraphDtype, ModelSpec
from ..errors import CorruptWeights, ModelUnavailable
from .onnx_data import data_names, usual_files
from .regular_files import open_regular, read_regular

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
MAX_HEADER_BYTES = 16_000_000
"""Enough for a hundred thousand tensors. The safetensors format allows 100 MB, which take a minute to read."""
_MODULE = re.compile(
    r"sentence_transformers\.(models|base\.modules|sentence_transformer\.modules)(\.\w+)?"
    r"\.(Transformer|StaticEmbedding|Pooling|WeightedLayerPooling|Dense|Dropout|LayerNorm|Normalize)"
)
"""The modules that are loaded. Other names in a modules.json reach anything that the library ever imported."""
_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
"""What can be raised while a damaged JSON file is read, or one of an unexpected structure."""
MODULES = "modules.json"
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(spec: ModelSpec, folder: Path, dtype: GraphDtype | None = None) -> list[str]:
    """Sorted paths in the folder: the safetensors of all modules, an ONNX graph and its data, or the GGUF file.

    dtype: see ModelSpec.graph. Raises ModelUnavailable, which names what is missing or not safe to read.
    """
    if spec.served_by == "onnx":
        return _graph_files(spec, folder, spec.graph(dtype))
    if has_gguf(spec, folder):
        return [str(spec.gguf)]
    found: list[str] = []
    for module in module_folders(spec, folder):
        _require_safe(spec, module)
        found += [file.relative_to(folder).as_posix() for file in _read_files(spec, module)]
    if not found:
        raise ModelUnavailable(spec.id, f"there are no safetensors in {folder}; {next_step(spec)}")
    return sorted(found)


def has_gguf(spec: ModelSpec, folder: Path) -> bool:
    """Whether the weights in this folder are the entry's GGUF file, which is converted before it is read; a folder of
    the Hub may hold the same model as safetensors."""
    return spec.gguf is not None and (folder / spec.gguf).is_file()


def named_files(spec: ModelSpec, folder: Path, dtype: GraphDtype | None = None) -> list[str]:
    """Sorted paths in the folder of the weights that other files name, even if they are missing: the data of an ONNX
    graph, the shards of a model that generates text. Raises ModelUnavailable."""
    if spec.kind == "generation" and not (folder / _WHOLE).is_file() and (folder / _INDEX).is_file():
        return _shards(spec, folder / _INDEX)
    return graph_data(spec, folder, dtype)


def graph_data(spec: ModelSpec, folder: Path, dtype: GraphDtype | None = None) -> list[str]:
    """Sorted paths in the folder of the data files that an ONNX graph names, even if they are missing; none for torch.

    dtype: see ModelSpec.graph. Raises ModelUnavailable where the graph cannot be read or names a place elsewhere.
    """
    if spec.served_by != "onnx":
        return []
    graph = spec.onnx_files[spec.graph(dtype)]
    if not (folder / graph).is_file():
        raise ModelUnavailable(spec.id, f"there is no {graph} in {folder}; {next_step(spec)}")
    try:
        names = {(PurePosixPath(graph).parent / name).as_posix() for name in data_names(folder / graph)}
    except (OSError, ValueError) as error:
        raise ModelUnavailable(spec.id, f"{graph} cannot be read, {error}; {next_step(spec)}") from error
    for name in names:
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise ModelUnavailable(spec.id, f"{graph} points outside its folder, at {name}; use another copy")
    return sorted(names)


def check_weights(
    spec: ModelSpec,
    folder: Path,
    sha256_of: Callable[[Path], str] | None = None,
    dtype: GraphDtype | None = None,
) -> str:
    """Check that the weights are complete and safe to read, and match their pinned digests.

    Returns the SHA-256 that identifies them: that of the file, or of the list of names and digests where there are
    several. sha256_of: hashes a file, and may cache that. Raises ModelUnavailable, CorruptWeights.
    """
    digest_of = sha256_of or file_sha256
    names = weight_files(spec, folder, dtype)
    require_whole(spec, folder, names)
    digests = {name: digest_of(folder / name) for name in names}
    for name, expected in _pins(spec, names, dtype):
        found = digests.get(name) or (digest_of(folder / name) if (folder / name).is_file() else "nothing")
        if found != expected:
            raise CorruptWeights(spec.id, name, expected, found)
    if len(names) == 1:
        return digests[names[0]]
    listing = "".join(f"{name} {digests[name]}\n" for name in names)
    return hashlib.sha256(listing.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_whole(spec: ModelSpec, folder: Path, names: Iterable[str]) -> None:
    """Refuse safetensors that are truncated or damaged, by their headers and sizes; no tensor is read.

    Raises ModelUnavailable, which names the file.
    """
    for name in names:
        fault = _fault(folder / name) if name.endswith(".safetensors") else None
        if fault:
            raise ModelUnavailable(spec.id, f"{name} cannot be read, {fault}; {next_step(spec)}")


def next_step(spec: ModelSpec) -> str:
    """The advice for weights that are missing or damaged, as the end of a sentence."""
    if spec.folder is None and spec.repository is not None:
        return f"fetch it again: mlbus models pull {spec.id}"
    return "point its entry at a complete copy"


def _fault(path: Path) -> str | None:
    """The fault of a safetensors file, if any: it is eight bytes of length, a JSON header, the tensors without gaps."""
    try:
        size = path.stat().st_size
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > max(size, MAX_HEADER_BYTES):
                return "it is not a safetensors file"
            if length > MAX_HEADER_BYTES:
                return f"its header has {length} bytes, and {MAX_HEADER_BYTES} are the most that is read"
            header = json.loads(file.read(length))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        expected = 8 + length + max((int(tensor["data_offsets"][1]) for tensor in tensors), default=0)
    except OSError as error:
        return f"it cannot be opened ({error.strerror})"
    except _DAMAGE:
        return "its header is cut short or damaged"
    return None if size == expected else f"it has {size} bytes and its header tells of {expected}"


def _require_safe(spec: ModelSpec, module: Path) -> None:
    """Refuse what the libraries would load instead of the safetensors or along with them: pickles and adapters."""
    if (module / "adapter_config.json").is_file():
        reason = f"{module} has an adapter (adapter_config.json), and adapters are not loaded"
        raise ModelUnavailable(spec.id, f"{reason}; merge it into its model, and save that as safetensors")
    pickles = sorted(file.name for pattern in PICKLES for file in module.glob(pattern))
    if pickles and not any((module / name).is_file() for name in (_WHOLE, _INDEX)):
        reason = f"{pickles[0]} is a pickle, which can run code when read, so it never is"
        raise ModelUnavailable(spec.id, f"{reason}; save the model as safetensors")


def _read_files(spec: ModelSpec, module: Path) -> list[Path]:
    """The safetensors of a module; of a model that generates text only those that transformers reads.

    Raises ModelUnavailable where a shard is missing.
    """
    if spec.kind == "generation":
        if (module / _WHOLE).is_file():
            return [module / _WHOLE]
        if (module / _INDEX).is_file():
            return _shard_files(spec, module / _INDEX)
    for index in sorted(module.glob("*.safetensors.index.json")):
        _shard_files(spec, index)
    return sorted(module.glob("*.safetensors"))


def _shard_files(spec: ModelSpec, index: Path) -> list[Path]:
    """The shards that an index names, each of which must lie beside it."""
    module, shards = index.parent, _shards(spec, index)
    for shard in shards:
        if shard != PurePosixPath(shard).name or not (module / shard).is_file():
            raise ModelUnavailable(spec.id, f"{shard}, which {index.name} names, is not in {module}; {next_step(spec)}")
    return [module / shard for shard in shards]


def _shards(spec: ModelSpec, index: Path) -> list[str]:
    """The files that an index names, sorted. Raises ModelUnavailable."""
    try:
        return sorted({str(shard) for shard in json.loads(read_regular(index))["weight_map"].values()})
    except _DAMAGE as error:
        raise ModelUnavailable(spec.id, f"{index.name} cannot be read; {next_step(spec)}") from error


def is_static(folder: Path) -> bool:
    """Whether the model's first module is sentence-transformers' StaticEmbedding, a table of token vectors."""
    try:
        return str(json.loads(read_regular(folder / MODULES))[0]["type"]).endswith(".StaticEmbedding")
    except _DAMAGE:
        return False


def module_folders(spec: ModelSpec, folder: Path) -> list[Path]:
    """The folders of an embedding model's modules, in order; `folder` itself for a model that generates text.

    Raises ModelUnavailable.
    """
    if spec.kind == "generation":
        return [folder]
    try:
        modules = json.loads(read_regular(folder / MODULES))
        paths = [folder / module["path"] for module in modules]
        types = [str(module["type"]) for module in modules]
    except _DAMAGE as error:
        reason = f"{folder} has no readable modules.json; save the model with sentence-transformers"
        raise ModelUnavailable(spec.id, reason) from error
    if foreign := [name for name in types if not name.startswith("sentence_transformers.")]:
        raise ModelUnavailable(spec.id, f"it needs code of its own, {foreign[0]}, which is never run; use another")
    if unserved := [name for name in types if not _MODULE.fullmatch(name)]:
        raise ModelUnavailable(spec.id, f"it has a module {unserved[0]}, which is not loaded here; use another")
    if any(not path.resolve().is_relative_to(folder.resolve()) for path in paths):
        raise ModelUnavailable(spec.id, "its modules.json points outside its folder; use another copy")
    return paths


def _graph_files(spec: ModelSpec, folder: Path, dtype: GraphDtype) -> list[str]:
    graph, data = spec.onnx_files[dtype], graph_data(spec, folder, dtype)
    for name in data:
        if not (folder / name).is_file():
            raise ModelUnavailable(spec.id, f"{name}, which {graph} needs, is not in {folder}; {next_step(spec)}")
    return sorted({graph, *data})


def _pins(spec: ModelSpec, names: list[str], dtype: GraphDtype | None) -> list[tuple[str, str]]:
    """The pinned files and their digests, without those that may be missing: graphs in another dtype, a GGUF file where
    there are safetensors."""
    chosen = spec.graph(dtype)
    others = [file for other, graph in spec.onnx_files.items() if other != chosen for file in usual_files(graph)]
    elsewhere = others if spec.served_by == "onnx" else [spec.gguf] if spec.gguf else []
    return [
        (name, digest)
        for name, digest in spec.sha256.items()
        if name in names or not any(fnmatch(name, file) for file in elsewhere)
    ]
