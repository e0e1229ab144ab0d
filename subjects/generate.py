"""`ml.generate` and `ml.generate.batch`: a prompt in, its completion out, whole or as frames of a stream.

`index` is the place of a prompt in a batch, `choice` the place of a completion among the n of its prompt. Completion
number k = index * n + choice is sampled with seed + k (mod 2^64). The reply returns that seed, so that each completion
can be repeated alone.
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from .generate_fields import Biases, Chat, Context, Name, Part, StopStrings, StopTokenIds, Text, check_continues
from .message import MAX_TOKEN_ID, STREAM, Message, Reply, Stream, Token, TokenIds
from .names import FinishReason

MAX_TOKENS = 1_048_576
MAX_SEED = 2**64 - 1
MAX_PROMPTS = 256

_OF_GAP = ("context", "path", "repository")
_WITHOUT_SAMPLING = {"n": 1, "temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0}


def _as_model_says(description: str, **bounds: Any) -> Any:
    """A field that, if absent, is as the model's entry or its generation_config says, or changes no probability."""
    return Field(None, description=f"{description}; absent: as the model says", **bounds)


class GenerateOptions(Message):
    """The options of every request that generates text."""

    model: Token | None = Field(None, description="model id; absent: the worker's default")
    max_tokens: int = Field(
        256,
        ge=0,
        le=MAX_TOKENS,
        description="tokens of a completion at most; 0 with 'echo': the prompt alone. Together with the prompt they "
        "must fit into the model's context, else 413; absent: what the context leaves, if that is less",
    )
    min_tokens: int = Field(
        0, ge=0, le=MAX_TOKENS, description="the text does not end by itself before this many tokens"
    )
    temperature: float | None = _as_model_says(
        "below 1 makes likely tokens likelier; 0: always the likeliest", ge=0, le=2
    )
    top_p: float | None = _as_model_says("only the likeliest tokens that together have this probability", gt=0, le=1)
    top_k: int | None = _as_model_says("only this many likeliest tokens; 0: all", ge=0, le=MAX_TOKEN_ID)
    min_p: float | None = _as_model_says("no token below this share of the likeliest token's probability", ge=0, le=1)
    repetition_penalty: float | None = _as_model_says(
        "above 1 makes tokens of prompt and text less likely", ge=0.01, le=10
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="subtracted from the logits of tokens that the text contains"
    )
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="the same, for each occurrence")
    logit_bias: Biases | None = Field(
        None, description="token id -> what is added to its logit; in JSON the ids are strings of decimals"
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="return each token's log-probability, with 'echo' also the prompt's, and this many of the "
        "likeliest alternatives",
    )
    n: int = Field(1, ge=1, le=16, description="completions of each prompt")
    num_beams: int = Field(1, ge=1, le=8, description="above 1: beam search, which is neither sampled nor streamed")
    length_penalty: float = Field(1.0, ge=-10, le=10, description="for beams: above 0 favours longer texts")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="absent: drawn; the reply contains it either way")
    stop: StopStrings | None = Field(
        None, description="strings that end the text and are not part of it; one or a list"
    )
    stop_token_ids: StopTokenIds | None = Field(None, description="tokens that end the text, besides the model's own")
    echo: bool = Field(False, description="begin the text with the prompt; not for a chat or a gap")
    stream: Stream | None = STREAM

    @model_validator(mode="after")
    def _go_together(self) -> "GenerateOptions":
        if self.min_tokens > self.max_tokens:
            raise ValueError(f"field 'min_tokens' is {self.min_tokens}, above 'max_tokens', {self.max_tokens}")
        if not self.max_tokens and not self.echo:
            raise ValueError("field 'max_tokens' is 0, which leaves the prompt alone: send 'echo' too")
        if self.num_beams == 1 and self.length_penalty != 1:
            raise ValueError("field 'length_penalty' is for beams: send 'num_beams' above 1 too")
        if self.num_beams > 1:
            self._check_beams()
        return self

    def _check_beams(self) -> None:
        """Refuse sampling options with beams, where they would have no effect."""
        if not self.max_tokens:
            raise ValueError("field 'max_tokens' is 0, and beams need at least 1")
        sampled = [name for name, neutral in _WITHOUT_SAMPLING.items() if getattr(self, name) not in (None, neutral)]
        if sampled:
            raise ValueError(f"fields {', '.join(map(repr, sampled))} and 'num_beams' above 1 exclude each other")


_TOKENS = "the ids of a prompt, special tokens included, as ml.tokenize returns them; nothing is added"


class GenerateRequest(GenerateOptions):
    """One of four forms: `prompt`; or its `tokens`; or `messages`; or `prefix` and `suffix`, to fill the gap between
    them."""

    prompt: Text | None = Field(None, description="a text to continue")
    tokens: TokenIds | None = Field(None, description=_TOKENS)
    messages: Chat | None = Field(None, description="a chat to answer, for models with a chat template")
    continue_final: bool = Field(
        False, description="continue the last turn, which must be the assistant's, instead of answering it"
    )
    prefix: Part | None = Field(None, description="the text before the gap, for models that fill in the middle")
    suffix: Part | None = Field(None, description="the text behind the gap; one of the two may be empty")
    context: Context | None = Field(
        None, description="for a gap: files of the same repository, the nearest last; what does not fit is left out"
    )
    path: Name | None = Field(None, description="for a gap: the path of its file")
    repository: Name | None = Field(
        None, description="for a gap: the repository's name, for models with a token for it"
    )

    @model_validator(mode="after")
    def _one_form(self) -> "GenerateRequest":
        forms = ("prompt", "tokens", "messages", "prefix", "suffix")
        given = {name for name in forms if getattr(self, name) is not None}
        if given not in ({"prompt"}, {"tokens"}, {"messages"}, {"prefix", "suffix"}):
            one = "send one of 'prompt' (a text that is not empty), 'tokens', 'messages', or 'prefix' and 'suffix'"
            raise ValueError(one)
        if self.prefix == self.suffix == "":
            raise ValueError("fields 'prefix' and 'suffix' are both empty")
        if self.echo and self.prompt is None and self.tokens is None:
            raise ValueError("field 'echo' is for a 'prompt'")
        check_continues(self.continue_final, self.messages)
        if self.prefix is None and (of_gap := [name for name in _OF_GAP if getattr(self, name) is not None]):
            raise ValueError(f"field {of_gap[0]!r} is for 'prefix' and 'suffix'")
        return self


class GenerateBatchRequest(GenerateOptions):
    """Either `prompts` or `tokens`."""

    prompts: Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)] | None = Field(
        None, description="texts to continue"
    )
    tokens: Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)] | None = Field(
        None, description="a list of ids for each prompt, as in ml.generate"
    )

    @model_validator(mode="after")
    def _one_form(self) -> "GenerateBatchRequest":
        if (self.prompts is None) == (self.tokens is None):
            raise ValueError("send either 'prompts' or 'tokens'")
        return self


class GenerateUsage(Reply):
    """Numbers of tokens. `cached_tokens` are those of the prompt that were not recomputed."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


_LOGPROB = "natural logarithm of its probability, before penalties and filters"


class ScoredToken(Reply):
    token: str = Field(description="its text; a part of a character may not be text")
    id: int
    bytes: list[int] = Field(default_factory=list, description="its bytes, also if they are only a part of a character")


class TopLogprob(ScoredToken):
    logprob: float = Field(description=_LOGPROB)


class TokenLogprob(ScoredToken):
    logprob: float | None = Field(None, description=f"{_LOGPROB}; absent for a prompt's first token")
    top: list[TopLogprob] = Field(default_factory=list, description="the likeliest tokens in its place")


class Ended(Reply):
    """How a completion ended."""

    finish_reason: FinishReason
    stop_reason: str | int | None = Field(
        None, description="the stop string or token id that ended it; absent: the model's own end"
    )
    seed: int = Field(description="the seed of its sampling")


class Completed(Ended):
    text: str
    logprobs: list[TokenLogprob] | None = Field(None, description="absent unless asked for", repr=False)


class GenerateFailure(Reply):
    """Why one completion of several failed; the codes are those of error replies."""

    code: int
    message: str


class Choice(Completed):
    """One of `n` completions of a prompt. With `error` its finish reason is `error`."""

    choice: int
    error: GenerateFailure | None = None


class GenerateResult(Completed):
    """One prompt of a batch. With `error` its finish reason is `error`. `choices` is present with `n` above 1."""

    usage: GenerateUsage
    choices: list[Choice] | None = None
    error: GenerateFailure | None = None


class Generated(Reply):
    """The part of every last message that names the model. usage: of all completions.

    context_files: how many files of a gap's `context` were read, the last ones; the first of these may be cut.
    """

    model: str
    version: str = Field(description="the exact weights and precision that served the request")
    usage: GenerateUsage
    context_files: int | None = None


class GenerateReply(Completed, Generated):
    """With `n` above 1, `choices` has all completions, and the other fields are those of the first."""

    choices: list[Choice] | None = None

    def as_text(self) -> str:
        return self.text

    def beside_text(self) -> dict[str, Any]:
        return _facts(self)


class GenerateBatchReply(Generated):
    results: list[GenerateResult] = Field(description="in the order of the prompts")


class TokenFrame(Reply):
    """More text of one completion, in whole characters. `index` is present in a batch, `choice` with `n` above 1."""

    seq: int = 0
    text: str
    index: int | None = None
    choice: int | None = None
    logprobs: list[TokenLogprob] | None = Field(None, description="absent unless asked for", repr=False)

    def as_text(self) -> str:
        return self.text

    def beside_text(self) -> dict[str, Any]:
        return {}


class CompletionEnd(Ended):
    """The end of one completion out of several."""

    index: int | None = None
    choice: int | None = None
    usage: GenerateUsage
    error: GenerateFailure | None = None


class GenerateDone(Ended, Generated):
    """The last frame. With several completions, `choices` has all ends; the other fields are the first one's."""

    seq: int = 0
    choices: list[CompletionEnd] | None = None

    def as_text(self) -> str:
        """A line break: the body of a frame is never empty."""
        return "\n"

    def beside_text(self) -> dict[str, Any]:
        return _facts(self)


MAX_STOP_CHARS = 32
"""Characters of the stop string in the header Ml-Result."""
_FACTS = ("model", "version", "finish_reason", "stop_reason", "seed", "usage")


def _facts(message: Reply) -> dict[str, Any]:
    facts = {name: value for name in _FACTS if (value := getattr(message, name)) is not None}
    if isinstance(reason := facts.get("stop_reason"), str):
        facts["stop_reason"] = reason[:MAX_STOP_CHARS]  # headers have little room
    return facts
