"""smollm2 as it is served: converted once for all processes of a test run, which takes seconds."""

import fcntl
import os
from functools import cache
from pathlib import Path

from models.catalogue import load_catalogue
from models.loading.load_cache import LoadCache
from models.loading.loader import LoadOptions, located
from models.weights import hub

SMOLLM2 = load_catalogue().get("smollm2")
SOURCE = hub.locate(SMOLLM2) / str(SMOLLM2.gguf)


def cache_folder() -> Path:
    """Where the conversion is kept; a worker with this folder as its cache need not do it again."""
    return Path(os.environ["TESTS_CACHE"])


@cache
def converted_folder() -> Path:
    """The converted model."""
    with (cache_folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return located(SMOLLM2, LoadOptions("cpu", "fp32", cache=LoadCache(cache_folder())))[1]
