"""What every loaded generation model is to those who use it. Knows no framework."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from ..catalogue import Quantization
from .request import Event, FinishReason, Request


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str


@dataclass(frozen=True, slots=True)
class Plain:
    """A text to go on with."""

    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Turns to answer, put together by the model's chat template. continue_final: to go on with the last one."""

    messages: tuple[Message, ...]
    continue_final: bool = False


@dataclass(frozen=True, slots=True)
class Fill:
    """A gap to fill in, between what stands before and behind it."""

    prefix: str
    suffix: str


Prompt: TypeAlias = Plain | Chat | Fill


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """A prompt as token ids, special tokens included, and the ids that end its completion."""

    ids: Sequence[int]
    stop_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the model's entry or its generation_config says where a request does not; None where neither does."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine does now. kv_used_bytes: of kv_bytes, by running requests; prefix_hits: prompt tokens not
    computed since the start; step_texts, step_prompt_tokens: of how many texts the latest step computed the next token,
    and how many tokens of prompts."""

    running: int = 0
    waiting: int = 0
    waiting_tokens: int = 0
    kv_used_bytes: int = 0
    kv_bytes: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    preempted: int = 0
    step_texts: int = 0
    step_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """max_running: requests that decode at once. waiting, waiting_tokens: requests, and tokens of their prompts, that
    may wait. kv_bytes: memory for keys and values. chunk_tokens: of prompts, computed in a step at most."""

    max_running: int = 32
    waiting: int = 256
    waiting_tokens: int = 262_144
    kv_bytes: int = 1 << 30
    chunk_tokens: int = 128


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What is known of a loaded model. version: the exact weights and precision (see encoders.base.version_of);
    max_tokens: its context, prompt and completion together; weight_bytes: on the device, without kv_bytes; max_running,
    places: how many requests may run, and may run and wait; 0 where that is not bounded."""

    model: str
    version: str
    device: str
    dtype: str
    quantization: Quantization | None
    weight_bytes: int
    kv_bytes: int
    max_tokens: int
    vocabulary: int
    chat: bool
    fill: bool
    max_running: int = 0
    places: int = 0
    defaults: Defaults = field(default_factory=Defaults)
    notes: tuple[str, ...] = ()


class GenerationEngine(Protocol):
    """A loaded model that completes many requests at once. Synchronous.

    `add`, `abort`, `step` and `close` are called by one thread at a time; `prompt_tokens` by any.
    """

    @property
    def facts(self) -> EngineFacts:
        """See EngineFacts."""

    @property
    def load(self) -> EngineLoad:
        """See EngineLoad. From any thread."""

    @property
    def is_idle(self) -> bool:
        """Whether a step would do nothing."""

    def prompt_tokens(self, prompt: Prompt) -> PromptTokens:
        """Tokenise. Raises InvalidRequest where the model has no such form, or the prompt is empty."""

    def check(self, request: Request) -> None:
        """Refuse what could never run, from any thread. Raises InvalidRequest, PromptTooLong."""

    def add(self, request: Request) -> None:
        """Queue a request. Raises what `check` does, EngineFull, DuplicateRequest."""

    def abort(self, request_id: str, reason: FinishReason) -> None:
        """End a request: its Finished comes with the next step. Nothing where it has ended already."""

    def step(self) -> list[Event]:
        """Run the model once over what there is to do -> what came of it, in the order in which it came."""

    def close(self) -> None:
        """Let go of the weights and the cache; nothing may be asked afterwards."""
