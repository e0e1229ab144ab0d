"""What huggingface_hub raises, as errors of ours that say what to do."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..catalogue import ModelSpec
from ..errors import ModelError, ModelUnavailable, cause_text, size_text

_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "{repository} asks for consent; accept its licence on the Hub and set HF_TOKEN to your token"),
    (DisabledRepoError, "the Hub has disabled {repository}; give the entry a `folder`, or choose another model"),
    (RevisionNotFoundError, "{repository} has no revision {revision}; correct `revision` in its entry"),
    (
        RepositoryNotFoundError,
        "there is no repository {repository}, or it is private; correct it, or set HF_TOKEN to the token of somebody "
        "who may read it",
    ),
    (
        OfflineModeIsEnabled,
        "{repository} is not, or not all, in the cache, and HF_HUB_OFFLINE forbids asking the Hub; unset it, or give "
        "the entry a `folder`",
    ),
)

_STATUSES = {
    401: "the Hub does not take the token; correct or unset HF_TOKEN",
    403: "the token may not read {repository}; set HF_TOKEN to one that may",
    429: "the Hub has had too many requests from here; try again {later}, or set HF_TOKEN, which allows more",
}


@contextmanager
def hub_errors(spec: ModelSpec, needed_bytes: int = 0) -> Iterator[None]:
    """Raise anything that fails inside as a ModelError. needed_bytes: what is being downloaded."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # the HTTP library below raises its own, and has changed between versions
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT):  # what the disk has free says nothing of a quota
            raise no_space(spec, needed_bytes, free_bytes() if number == errno.ENOSPC else 0) from error
        raise ModelUnavailable(spec.id, _reason(error, spec)) from error


def no_space(spec: ModelSpec, needed: int, free: int) -> ModelError:
    """The error for a download that the cache's disk has too little free space for; sizes in bytes."""
    return ModelError(
        f"model {spec.id!r} needs {size_text(needed)} more in {constants.HF_HUB_CACHE}, where {size_text(free)} are "
        "free; free some (`mlbus models prune` helps), or set HF_HOME to a folder on a larger disk"
    )


def free_bytes() -> int:
    """Free space on the disk of the cache."""
    cache = Path(constants.HF_HUB_CACHE).absolute()
    return shutil.disk_usage(next(path for path in (cache, *cache.parents) if path.exists())).free


def _reason(error: BaseException, spec: ModelSpec) -> str:
    """Why a model could not be fetched and what to do, from the most specific error of the chain."""
    chain = list(_chain(error))
    known = next((text for kind, text in _KINDS if any(isinstance(one, kind) for one in chain)), None)
    refused = next((one.response for one in chain if isinstance(one, HfHubHTTPError)), None)
    if known is None and refused is not None:
        known = _STATUSES.get(refused.status_code)
    if known is None:
        return _unforeseen(chain[-1], spec)
    retry_after = refused.headers.get("Retry-After") if refused is not None else None
    return known.format(
        repository=spec.repository,
        revision=spec.revision or constants.DEFAULT_REVISION,
        later=f"in {retry_after} s" if retry_after else "later",
    )


def _unforeseen(error: BaseException, spec: ModelSpec) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename} cannot be written ({error.strerror}); set HF_HOME to a folder that can"
    return (
        f"{spec.repository} could not be fetched from {constants.ENDPOINT} ({cause_text(error)}); "
        "check the connection and HF_ENDPOINT, then pull again: files that came whole are kept"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
