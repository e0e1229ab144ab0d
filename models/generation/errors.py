"""What the engine refuses or fails at; part of the tree of models/errors.py."""

from dataclasses import dataclass

from ..errors import ModelError


@dataclass(eq=False)
class InvalidRequest(ModelError):
    """A request asks for what this model cannot do, or holds a value out of range; `reason` is a clause."""

    field: str
    reason: str

    def __str__(self) -> str:
        return f"field {self.field!r}: {self.reason}"


@dataclass(eq=False)
class PromptTooLong(ModelError):
    """A prompt, with what is to be made of it, is longer than what holds it; `what` names that. In tokens."""

    prompt: int
    max_tokens: int
    limit: int
    what: str

    def __str__(self) -> str:
        return (
            f"the prompt has {self.prompt} tokens, and with max_tokens {self.max_tokens} passes the {self.limit} of "
            f"{self.what}; shorten the prompt, or ask for fewer"
        )


@dataclass(eq=False)
class EngineFull(ModelError):
    """No more requests are taken now; `what` names the limit."""

    what: str

    def __str__(self) -> str:
        return f"this worker's queue for text generation is full ({self.what}); try again later"


@dataclass(eq=False)
class DuplicateRequest(ModelError):
    """A request with this id is in the engine already."""

    id: str

    def __str__(self) -> str:
        return f"a request with the id {self.id!r} is running already; send another Ml-Request-Id"


@dataclass(eq=False)
class NonFiniteLogits(ModelError):
    """The model gave NaN for this request's next token."""

    model: str

    def __str__(self) -> str:
        return f"model {self.model!r} gave no finite scores for the next token"
