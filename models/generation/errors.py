"""What the engine refuses or fails at."""

from ..errors import ModelError


class InvalidRequest(ModelError):
    """A field of a request is out of range, or not supported by this model; `reason` is a clause."""

    field: str
    reason: str

    message = "field {field!r}: {reason}"


class PromptTooLong(ModelError):
    """A prompt and its max_tokens exceed a limit in tokens; `what` names the limit."""

    prompt: int
    max_tokens: int
    limit: int
    what: str

    message = (
        "the prompt has {prompt} tokens, and with max_tokens {max_tokens} passes the {limit} of {what}; shorten the "
        "prompt, or ask for fewer"
    )


class EngineFull(ModelError):
    """The queue is full; `what` names the limit."""

    what: str

    message = "this worker's queue for text generation is full ({what}); try again later"


class DuplicateRequest(ModelError):
    """A request with this id is in the engine already."""

    id: str

    message = "a request with the id {id!r} is running already; send another Ml-Request-Id"


class NonFiniteLogits(ModelError):
    """The logits of the next token hold NaN, or nothing above minus infinity."""

    model: str

    message = "model {model!r} gave no finite scores for the next token"
