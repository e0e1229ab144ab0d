"""Requests, events and facts of a generation engine, and the interface that every engine implements."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from ..catalogue import Quantization, SamplingDefaults
from ..tokenized_text import TokenizedText, Vocabulary

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "timeout", "error"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


@dataclass(frozen=True, slots=True)
class Plain:
    """A text to continue."""

    text: str


@dataclass(frozen=True, slots=True)
class Ids:
    """A text to continue, as the model's token ids."""

    tokens: Sequence[int]


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages for the model's chat template. continue_final: continue the last message instead of answering it."""

    messages: tuple[Message, ...]
    continue_final: bool = False


@dataclass(frozen=True, slots=True)
class ContextFile:
    """A file, or a part of one, that helps to fill a gap."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Fill:
    """A gap to fill in, between prefix and suffix. context: files of the same repository, the nearest last.

    path, repository: of the file with the gap.
    """

    prefix: str
    suffix: str
    context: Sequence[ContextFile] = ()
    path: str | None = None
    repository: str | None = None


Prompt: TypeAlias = Plain | Ids | Chat | Fill


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt as token ids, special tokens included, and the ids that end its completion.

    context_files: how many files of a gap's context are in it, the last ones; the first of these may be cut.
    """

    ids: Sequence[int]
    stop_ids: frozenset[int]
    context_files: int = 0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 keep every token.

    repetition_penalty divides (or multiplies, if negative) the logits of tokens in the prompt or the completion;
    presence_penalty and frequency_penalty are subtracted for tokens in the completion. logit_bias: token id -> added to
    its logit. seed: unsigned, 64 bits; the same seed gives the same tokens whatever else runs. logprobs: how many
    alternatives to report beside the chosen token's own log-probability; None reports nothing.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One completion. prompt: token ids, BOS included. max_tokens, min_tokens: of the completion.

    stop_ids: token ids that end the text and are not part of it. stop: strings that do the same. num_beams above 1
    selects beam search, which returns its text at the end; a beam's score is divided by its length ** length_penalty.
    prompt_logprobs: report sampling.logprobs for the prompt's tokens too. caller: who shares the engine fairly.
    """

    id: str
    prompt: Sequence[int]
    max_tokens: int
    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    num_beams: int = 1
    length_penalty: float = 1.0
    prompt_logprobs: bool = False
    caller: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its log-probability before penalties and filters, and the likeliest alternatives.

    Texts are bytes, since one character may take several tokens. logprob: None for a prompt's first token.
    """

    id: int
    text: bytes
    logprob: float | None
    top: tuple[tuple[int, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a request. cached: prompt tokens taken from the prefix cache."""

    prompt: int
    cached: int
    completion: int


@dataclass(frozen=True, slots=True)
class Scored:
    """The log-probabilities of a whole prompt; comes before the first Piece. request: its id."""

    request: str
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """More text of a request: never empty, final, whole characters. tokens: how many begin in it."""

    request: str
    text: str
    tokens: int = 1
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a request; exactly one. stop_reason: the stop string or token id that ended it.

    error: what failed, with reason "error" only.
    """

    request: str
    reason: FinishReason
    usage: Usage
    stop_reason: str | int | None = None
    error: Exception | None = None


Event: TypeAlias = Scored | Piece | Finished


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine holds now. waiting_tokens: in the prompts of waiting requests. kv_used_bytes: of running requests.

    preempted: preemptions since the start. step_decodes, step_prompt_tokens: completions advanced, and prompt tokens
    computed, by the latest step.
    """

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    kv_used_bytes: int = 0
    kv_bytes: int = 0
    preempted: int = 0
    step_decodes: int = 0
    step_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """max_running: requests that decode at once. waiting, waiting_tokens: bounds of the queue, in requests and in
    prompt tokens. kv_bytes: memory for keys and values. chunk_tokens: prompt tokens at most in a
    step with decodes; four times that in one without."""

    max_running: int = 32
    waiting: int = 256
    waiting_tokens: int = 262_144
    kv_bytes: int = 1 << 30
    chunk_tokens: int = 128


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """Facts about a loaded model. model: catalogue id. version: exact weights and precision, see
    encoders.base.version_of. device: cpu or cuda:0. dtype: of the computation. weight_bytes: on the device, without
    kv_bytes. max_tokens: context length, prompt plus completion. vocabulary: rows of the output layer. chat, fill:
    whether it supports these prompts. max_requests: how many may run or wait. 0: no limit."""

    model: str
    version: str
    device: str
    dtype: str
    quantization: Quantization | None
    weight_bytes: int
    max_tokens: int
    vocabulary: int
    chat: bool
    fill: bool
    kv_bytes: int = 0
    max_running: int = 0
    max_requests: int = 0
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    notes: tuple[str, ...] = ()


class GenerationEngine(Protocol):
    """A loaded model that completes many requests at once. Synchronous.

    `prompt_tokens`, `check` and `load` may be used from any thread, everything else from one thread at a time.
    """

    facts: EngineFacts
    load: EngineLoad

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""

    def prompt_tokens(self, prompt: Prompt, max_tokens: int = 0, num_beams: int = 1) -> PromptTokens:
        """Tokenise; the context of a gap is cut so that it leaves space for a completion of max_tokens.

        Raises InvalidRequest if the model does not support this form, or the prompt is empty, and InvalidOption."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Its tokens. Usable from any thread."""

    def tokenized(self, prompt: Plain | Chat, special: bool = True, offsets: bool = True) -> TokenizedText:
        """Tokenise to look at the tokens; a plain text may be empty. special: whether a text begins with the model's
        initial special tokens. offsets: whether their places are wanted. Raises InvalidRequest. Thread-safe."""

    def check(self, request: Request) -> None:
        """Refuse a request that could never run. Raises InvalidRequest, PromptTooLong."""

    def add(self, request: Request) -> None:
        """Queue a request. Raises what `check` does, EngineFull, DuplicateRequest."""

    def abort(self, request_id: str, reason: FinishReason) -> None:
        """End a request; its Finished comes with the next step. Does nothing if it has ended already."""

    def step(self) -> list[Event]:
        """Run the model once over all pending work -> the resulting events, in order."""

    def close(self) -> None:
        """Free the weights and the cache; the engine cannot be used afterwards."""
