"""What comes with a model is first opened in a process of its own, within limits of memory and time; once a content.

`needed` tells whether that has to be done, `prove` does it. `python -m models.sandbox.probe FD` is the process: it
counts the model on torch's meta device, reads its tokeniser, and loads it whole where it is small or an ONNX graph,
which only a run tells of. Not so opened are models that a Python package brings, which could run code anyway, and the
versions that we trained, where their digest is the recorded one.
"""

import hashlib
import os
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from ..catalogue import GraphDtype, ModelSpec
from ..errors import ModelError, ModelUnavailable
from ..loading.loader import LoadOptions, graph_dtype
from ..weights import hub
from ..weights.model_files import check_weights, has_gguf, next_step, require_whole, weight_files
from ..weights.regular_files import texts_of
from ..weights.versions import record_of
from . import child_process, frames

WHOLE_BYTES = 2 << 30
"""Weights up to so many bytes are loaded whole."""
MEMORY_BYTES = 2 << 30
"""What the process may take beside three times the weights that it loads whole."""
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "sentence-transformers")
_NICENESS = 10


@dataclass(frozen=True, slots=True)
class Unproved:
    """What has to be opened in a process of its own. key: of its content, and of the libraries that read it."""

    spec: ModelSpec
    folder: Path
    graph: GraphDtype | None
    key: str


def needed(spec: ModelSpec, options: LoadOptions) -> Unproved | None:
    """What has to be proved before this is loaded; None where nothing has. Hashes what it has not hashed before.

    Raises ModelUnavailable where the folder holds what no model needs, CorruptWeights.
    """
    graph = graph_dtype(spec, options)
    folder = options.folder or hub.locate(spec, False, graph)
    own = options.folder is not None
    if not own and spec.folder is None and not hub.from_hub(spec):
        return None
    cached = folder.parent.name == "snapshots"  # in the Hub's cache, where files are links to what lies beside that
    try:
        texts = texts_of(folder, folder.parent.parent if cached else None)
    except (OSError, ValueError) as error:
        raise ModelUnavailable(spec.id, f"{folder} cannot be used: {error}; use a copy without that") from error
    if not own and has_gguf(spec, folder):  # converted in a process of its own, and its weights are pinned or hashed
        return None
    if own:
        spec = spec.model_copy(update={"sha256": {}, "gguf": None})
    digest = check_weights(spec, folder, options.cache.sha256, graph)
    if own and _is_ours(folder, digest):
        return None
    lines = [f"{text.relative_to(folder)} {options.cache.sha256(text)}" for text in texts]
    content = "\n".join([spec.kind, spec.served_by, str(graph), digest, *lines, *_libraries()])
    key = hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()
    return None if options.cache.is_proved(key) else Unproved(spec, folder, graph, key)


def _is_ours(folder: Path, digest: str) -> bool:
    """Whether a version says that its training made these weights."""
    with suppress(OSError, ValueError):
        record = record_of(folder)
        return record is not None and record.weights_sha256 == digest
    return False


@cache
def _libraries() -> tuple[str, ...]:
    return tuple(f"{name} {version(name)}" for name in _LIBRARIES)


def prove(unproved: Unproved, within_s: float) -> None:
    """Open a model in a process of its own, and wait for that; remembering that it went well is the caller's.

    Raises ModelUnavailable where it fails, takes more memory than it may, or more than so many seconds.
    """
    spec, step = unproved.spec, next_step(unproved.spec)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            process = child_process.start("models.sandbox.probe", str(theirs.fileno()), fds=[theirs.fileno()])
        try:
            asked = {"spec": spec.model_dump(mode="json"), "folder": str(unproved.folder), "graph": unproved.graph}
            frames.send(ours, asked, within_s)
            answer = frames.receive(ours, 100_000, within_s)
        except TimeoutError:
            reason = f"opening it took longer than {within_s:g} s in a process of its own; {step}"
            raise ModelUnavailable(spec.id, reason) from None
        except (OSError, ValueError):
            answer = None
        finally:
            child_process.end(process)
    if answer is None:
        raise ModelUnavailable(spec.id, f"opening it ended the process that was to try that; {step}")
    if answer["reason"]:
        raise ModelUnavailable(spec.id, str(answer["reason"]))


# In the process


def main(theirs: socket.socket) -> None:
    """Open the model that is asked for, and answer."""
    with theirs:
        os.nice(_NICENESS)
        asked = frames.receive(theirs, 1 << 20)
        theirs.settimeout(None)
        threading.Thread(target=_end_with, args=(theirs,), daemon=True).start()
        spec, folder = ModelSpec.model_validate(asked["spec"]), Path(asked["folder"])
        try:
            reason = _fault(spec, folder, asked["graph"])
        except ModelError as error:
            reason = getattr(error, "reason", str(error))
        except MemoryError:
            reason = f"opening it takes more memory than it may; {next_step(spec)}"
        except Exception as error:  # a foreign folder can make the libraries raise anything
            first_line = str(error).partition("\n")[0][:300]
            reason = f"it cannot be opened ({type(error).__name__}: {first_line}); {next_step(spec)}"
        frames.send(theirs, {"reason": reason})


def _end_with(theirs: socket.socket) -> None:
    """When the other side is gone nobody wants to know."""
    with suppress(OSError):
        theirs.recv(1)
    os._exit(1)


def _fault(spec: ModelSpec, folder: Path, graph: GraphDtype | None) -> str | None:
    from ..loading.loader import load, load_generator
    from .counted import count
    from .memory_limit import memory_ceiling

    files = weight_files(spec, folder, graph)
    require_whole(spec, folder, files)
    stored = sum((folder / name).stat().st_size for name in files)
    is_whole = stored <= WHOLE_BYTES or graph is not None
    options = LoadOptions("cpu", dtype=graph, folder=folder)
    with memory_ceiling(MEMORY_BYTES + 3 * stored * is_whole):
        if graph is None:
            count(spec, folder, files)
        if is_whole:
            (load_generator if spec.kind == "generation" else load)(spec, options).close()
    return None


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
