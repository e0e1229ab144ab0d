"""Whether a model can be served, by its configuration: before any of its weights are downloaded.

The configuration comes from the model's folder, from mlbus itself, or from the Hub, of which only small files are
fetched. The checks are the loader's own.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ..catalogue import ModelSpec, shipped_config
from ..errors import ModelUnavailable
from ..weights import hub
from ..weights.model_files import MODULES, has_gguf, module_folders

CONFIG = "config.json"


@dataclass(frozen=True, slots=True)
class Support:
    """served: whether a model can be served; None: not known. reason: why not, as a clause."""

    served: bool | None
    reason: str | None = None


def support(spec: ModelSpec) -> Support:
    """Whether an entry's model can be served; the Hub is asked for its configuration if need be."""
    if spec.served_by == "onnx":
        return Support(None, "its graph alone tells, at load")
    if spec.kind == "embedding" and shipped_config(spec):
        return Support(True)  # none ships for models that cannot be served
    with TemporaryDirectory() as folder:
        try:
            place = _configured(spec, Path(folder))
        except ModelUnavailable as error:
            return Support(None, error.reason)
        try:
            _require_served(spec, place)
        except ModelUnavailable as error:
            return Support(False, error.reason.replace(folder, str(spec.repository)))
    return Support(True)


def require_not_refused(spec: ModelSpec) -> None:
    """Raise ModelUnavailable if it is known that a model cannot be served."""
    found = support(spec)
    if found.served is False:
        raise ModelUnavailable(spec.id, str(found.reason))


def _configured(spec: ModelSpec, temporary: Path) -> Path:
    """A folder with the model's configuration: its own, or `temporary`. Raises ModelUnavailable if there is none."""
    try:
        folder = hub.locate(spec, download=False)
        if not has_gguf(spec, folder):
            return folder
    except ModelUnavailable:
        if not hub.from_hub(spec):
            raise
    if shipped := shipped_config(spec):
        (temporary / CONFIG).write_text(json.dumps(shipped))
    elif hub.from_hub(spec):
        hub.fetch_texts(spec, [CONFIG, MODULES], temporary)
    else:
        raise ModelUnavailable(spec.id, "its GGUF file alone tells, at load")
    return temporary


def _require_served(spec: ModelSpec, place: Path) -> None:
    if spec.kind == "embedding":
        module_folders(spec, place)
        return
    from ..generation.architecture import served_config  # which imports torch

    served_config(spec, place)
