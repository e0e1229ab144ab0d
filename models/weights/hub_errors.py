"""What a failed download means, and what to do about it, as a sentence. Knows huggingface_hub's errors and no files."""

from collections.abc import Iterator

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

_OFFLINE = (
    "{repository} is not, or not all, in the cache, and HF_HUB_OFFLINE forbids asking the Hub; unset it, or give the "
    "entry a `folder`"
)

_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "{repository} asks for consent; accept its licence on the Hub and set HF_TOKEN to your token"),
    (DisabledRepoError, "the Hub has disabled {repository}; give the entry a `folder`, or choose another model"),
    (RevisionNotFoundError, "{repository} has no revision {revision}; correct `revision` in its entry"),
    (
        RepositoryNotFoundError,
        "there is no repository {repository}, or it is private; correct it, or set HF_TOKEN to the token of somebody "
        "who may read it",
    ),
    (OfflineModeIsEnabled, _OFFLINE),
)

_STATUSES = {
    401: "the Hub does not take the token; correct or unset HF_TOKEN",
    403: "the token may not read {repository}; set HF_TOKEN to one that may",
    429: "the Hub has had too many requests from here; try again {later}, or set HF_TOKEN, which allows more",
}


def next_step(error: BaseException, spec: ModelSpec) -> str:
    """Why a model could not be fetched and what to do, from the most telling error of the chain."""
    chain = list(_chain(error))
    known = next((text for kind, text in _KINDS if any(isinstance(one, kind) for one in chain)), None)
    refused = next((one for one in chain if isinstance(one, HfHubHTTPError)), None)
    if known is None and refused is not None:
        known = _STATUSES.get(refused.response.status_code)
    if known is None:
        return _unforeseen(chain[-1], spec)
    return known.format(
        repository=spec.repository,
        revision=spec.revision or constants.DEFAULT_REVISION,
        later=_later(refused),
    )


def _unforeseen(error: BaseException, spec: ModelSpec) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename} cannot be written ({error.strerror}); set HF_HOME to a folder that can"
    first_line = str(error).partition("\n")[0]
    return (
        f"{spec.repository} could not be fetched from {constants.ENDPOINT} ({type(error).__name__}: {first_line}); "
        "check the connection and HF_ENDPOINT, then pull again: files that came whole are kept"
    )


def _later(refused: HfHubHTTPError | None) -> str:
    seconds = refused.response.headers.get("Retry-After") if refused is not None else None
    return f"in {seconds} s" if seconds else "later"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
