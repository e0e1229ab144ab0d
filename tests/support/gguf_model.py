"""smollm2 as it is served: converted once for the whole suite, which takes seconds."""

import tempfile
from functools import cache
from pathlib import Path

from models.catalogue import load_catalogue
from models.loading.load_cache import LoadCache
from models.loading.loader import LoadOptions, located
from models.weights import hub

SMOLLM2 = load_catalogue().get("smollm2")
SOURCE = hub.locate(SMOLLM2) / str(SMOLLM2.gguf)


@cache
def cache_folder() -> Path:
    """Where the conversion is kept; a worker with this folder as its cache need not do it again."""
    return Path(tempfile.mkdtemp(prefix="mlbus-tests-"))


@cache
def converted_folder() -> Path:
    """The converted model."""
    return located(SMOLLM2, LoadOptions("cpu", "fp32", cache=LoadCache(cache_folder())))[1]
