"""The requests of llama.cpp's server. Bounds are those of the wire contract, whose messages they become."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from subjects.generate import MAX_TOKENS
from subjects.message import Message

from ..openai.fill import gap_in

RANDOM_SEEDS = (-1, 2**32 - 1)
UNNAMED = "tmp"
"""The path of a piece of context that has none, as at llama.cpp."""
NEVER = -100.0
"""The bias of a token that must not come."""
MAX_TIME_MS = 86_400_000
INFILL_MIN_P = 0.5
"""Instead of llama.cpp's sampler `infill`, which leaves no unlikely token either."""
_SAME = ("model", "top_p", "min_p", "presence_penalty", "frequency_penalty", "stop")
"""Fields with the same name and meaning in the wire contract."""
_WITHOUT: dict[str, dict[str, float]] = {
    "temperature": {"temperature": 1.0},
    "top_k": {"top_k": 0},
    "top_p": {"top_p": 1.0},
    "min_p": {"min_p": 0.0},
    "penalties": {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
}
"""Each sampler that exists here -> the options with which it does nothing."""
Sampler: TypeAlias = Literal[
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "penalties",
    "infill",
    "dry",
    "typ_p",
    "xtc",
    "top_n_sigma",
    "adaptive_p",
]


def _as_map(biases: Any) -> Any:
    """Pairs of token and bias as a map; false is the bias of a token that must not come."""
    if isinstance(biases, list):
        if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], int | str) for pair in biases):
            raise ValueError("it is a list of pairs of a token id and a bias")
        biases = dict(biases)
    if not isinstance(biases, dict):
        return biases
    return {str(token): NEVER if bias is False else bias for token, bias in biases.items()}


class _Options(Message):
    """What both requests for text have."""

    model: str | None = Field(None, description="absent: the worker's default")
    n_predict: int = Field(
        -1,
        ge=-2,
        le=MAX_TOKENS,
        description="tokens at most; 0: read the prompt into the cache; below 0: as many as a request gets "
        "that names no `max_tokens`",
    )
    n_cmpl: int = Field(1, description="completions of each prompt")
    n_indent: int = Field(
        0, ge=0, le=1024, description="end before a line, other than the first, with less indentation"
    )
    t_max_predict_ms: int = Field(
        0, le=MAX_TIME_MS, description="end so long after the first token, once there is a line break; 0: never"
    )
    temperature: float | None = Field(None, description="absent, as for the other samplers: as the model says")
    top_k: int | None = Field(None, description="0 or less: all")
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    samplers: list[Sampler] | None = Field(
        None,
        max_length=32,
        description="those that apply; the order is ours. `infill`: no token with less than half the probability "
        "of the likeliest. Others that do not exist here do nothing, as without their parameters",
    )
    logit_bias: Annotated[
        dict[str, float] | None,
        BeforeValidator(_as_map, json_schema_input_type=dict[str, float] | list[list[float | bool]]),
    ] = Field(None, description="token id -> what is added to its logit; false: never")
    seed: int | None = Field(None, description="-1: drawn")
    stop: list[str] | None = Field(None, description="strings that end the text and are not part of it")
    stream: bool = Field(False, description="send the text as it is generated, as server-sent events")
    response_fields: list[str] | None = Field(
        None, max_length=64, description="the fields of the answer; one of an object inside has a slash in its name"
    )

    @property
    def number(self) -> int:
        """Of prompts."""
        return 1

    @property
    def warms_up(self) -> bool:
        """Whether the prompt alone is wanted, in the cache."""
        return self.n_predict == 0

    def options(self) -> dict[str, Any]:
        """The options of a request of the wire contract."""
        told = {name: value for name in _SAME if (value := getattr(self, name)) is not None}
        if self.temperature is not None:
            told["temperature"] = max(0.0, self.temperature)
        if self.top_k is not None:
            told["top_k"] = max(0, self.top_k)
        if self.repeat_penalty is not None:
            told["repetition_penalty"] = self.repeat_penalty
        if self.logit_bias:
            told["logit_bias"] = self.logit_bias
        if self.seed is not None and self.seed not in RANDOM_SEEDS:
            told["seed"] = self.seed % 2**64
        if self.n_predict >= 0:
            told["max_tokens"] = self.n_predict or 1  # nothing is generated without a token
        return told | {"n": 1 if self.warms_up else self.n_cmpl} | self._without_the_others()

    def _without_the_others(self) -> dict[str, float]:
        if self.samplers is None:
            return {}
        absent = [options for sampler, options in _WITHOUT.items() if sampler not in self.samplers]
        infill = [{"min_p": INFILL_MIN_P}] if "infill" in self.samplers else []
        return {name: value for options in [*absent, *infill] for name, value in options.items()}


class LlamaCompletionRequest(_Options):
    prompt: str | list[str] | list[int] | list[list[int]] = Field(
        description="a text or its token ids, or a list of these; a text with a model's tokens to fill in the middle "
        "is taken for what they mean"
    )

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """All of them."""
        several: Any = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        return [several] if several and isinstance(several[0], int) else several

    @property
    def number(self) -> int:
        return len(self.prompts)

    def form(self) -> dict[str, Any]:
        """What is completed, if it is one prompt."""
        prompt: Any = self.prompts[0] if self.prompts else ""
        gap = gap_in(prompt) if isinstance(prompt, str) else None
        return {"prefix": gap[0], "suffix": gap[1]} if gap else {"prompt": prompt}


class InfillChunk(Message):
    filename: str = Field("", description="its path")
    text: str
    time: float | None = Field(None, description="when it was taken; ignored")


class InfillRequest(_Options):
    input_prefix: str = Field("", description="the text before the gap")
    input_suffix: str = Field("", description="the text behind it")
    prompt: str = Field("", description="the end of the text before the gap")
    input_extra: list[InfillChunk] = Field(
        [], description="pieces of other files, the nearest last; what does not fit is left out"
    )

    @property
    def is_empty(self) -> bool:
        return not (self.input_prefix or self.input_suffix or self.prompt or self.input_extra)

    def form(self) -> dict[str, Any]:
        """The gap. A cache is warmed with the context alone, for which there must be a gap all the same."""
        prefix = self.input_prefix + self.prompt
        if self.warms_up and not (prefix or self.input_suffix):
            prefix = "\n"
        gap: dict[str, Any] = {"prefix": prefix, "suffix": self.input_suffix}
        if self.input_extra:
            gap["context"] = [{"path": extra.filename or UNNAMED, "text": extra.text} for extra in self.input_extra]
        return gap


class LlamaTokenizeRequest(Message):
    content: str
    model: str | None = Field(None, description="absent: the worker's default for prompts")
    add_special: bool = Field(False, description="put the model's own special tokens around the text")
    with_pieces: bool = Field(False, description="return the text of each token too; U+FFFD for a part of a character")


class LlamaDetokenizeRequest(Message):
    tokens: list[int]
    model: str | None = Field(None, description="absent: the worker's default for prompts")
