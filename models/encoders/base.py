"""The interface of every encoder, the options of a text, and the arithmetic that all encoders share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..catalogue import ModelSpec, Quantization
from ..errors import InvalidOption, ModelUnavailable, TextTooLong
from ..tokenized_text import TokenizedText, Vocabulary

if TYPE_CHECKING:  # it imports this module
    from .tokenise import TextTokenizer

Vectors = NDArray[np.float32]
Text: TypeAlias = str | Sequence[int]
"""A text; or the ids that the model reads of one, special tokens and prompt included."""
Truncation = Literal["end", "start", "error"]


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How texts become tokens.

    `prompt` is put in front of each text; `prompt_name` names one of the model's own prompts. If both are given,
    `prompt` wins; if neither is, the task's prompt or else the model's default applies. `task` names one of the model's
    tasks; None selects its default. `truncate`: the side on which a text that is too long is cut, or "error"; the
    prompt is always kept.
    """

    prompt: str | None = None
    prompt_name: str | None = None
    task: str | None = None
    truncate: Truncation = "end"


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as token ids, special tokens and prompt included.

    `prompt_tokens`: how many leading ids belong to the prompt. `task`: id of the task to run; None if the model has no
    tasks.
    """

    ids: list[int]
    truncated: bool = False
    prompt_tokens: int = 0
    task: int | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Encoder(Protocol):
    """A loaded embedding model.

    model: catalogue id. version: exact weights and precision, see `version_of`. dimensions: length of its uncut
    vectors. max_tokens: longest text, special tokens included. dtype: of the computation, fp32, bf16 or fp16.
    quantization: of the weights, if they are not in the dtype. weight_bytes: on the device. device: where it really
    runs, cpu or cuda:0. packed: whether a batch costs the sum of its tokens, instead of its longest text times the
    number of texts. normalizes: whether vectors are scaled to unit length by default. matryoshka: lengths to which
    vectors may be cut; empty: any. notes: messages from the load for the operator, such as a fall-back to fp32.
    """

    model: str
    version: str
    dimensions: int
    max_tokens: int
    dtype: str
    quantization: Quantization | None
    weight_bytes: int
    device: str
    packed: bool
    normalizes: bool
    prompts: Mapping[str, str]
    tasks: Mapping[str, int]
    matryoshka: Sequence[int]
    notes: tuple[str, ...]

    def tokenize(self, texts: Sequence[Text], options: TextOptions) -> list[Tokens | TextTooLong]:
        """Tokenise texts; ids must be the model's own.

        With truncate "error", a text that is too long gives an error in its place in the list. Thread-safe. Raises
        InvalidOption.
        """

    @property
    def vocabulary(self) -> Vocabulary:
        """Its tokens. Usable from any thread."""

    def tokenized(self, text: str, options: TextOptions, special: bool = True, offsets: bool = True) -> TokenizedText:
        """Tokenise a whole text, of any length, to look at its tokens; options: without `truncate`.

        special: whether to put the model's special tokens around it. offsets: whether their places are wanted.
        Thread-safe. Raises InvalidOption.
        """

    def encode(self, batch: Sequence[Tokens], between_layers: Callable[[], None] | None = None) -> Vectors:
        """Pooled vectors (B, dimensions) float32, in order, not normalised. All texts must have the same task.

        `between_layers` is called before each layer but the first, if the runtime can stop there; it may itself encode
        another batch. Only the device's own thread may call this. Raises OutOfDeviceMemory.
        """

    def close(self) -> None:
        """Free the weights; the encoder cannot be used afterwards."""


@dataclass(frozen=True, slots=True)
class PromptsAndTasks:
    """A model's named prompts (name -> text) and tasks (name -> id), and its defaults."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    tasks: Mapping[str, int] = field(default_factory=dict)
    default_task: str | None = None

    def task(self, options: TextOptions) -> str | None:
        """The task that applies; None for a model without tasks. Raises InvalidOption."""
        if options.task is None:
            return self.default_task
        _require_known("task", options.task, self.tasks)
        return options.task

    def prompt(self, options: TextOptions) -> str:
        """The text to put in front: as given, as named, the task's, or the default. Raises InvalidOption."""
        if options.prompt is not None:
            return options.prompt
        if options.prompt_name is not None:
            _require_known("prompt", options.prompt_name, self.prompts)
        names = (options.prompt_name, self.task(options), self.default_prompt)
        return next((self.prompts[name] for name in names if name is not None and name in self.prompts), "")


def _require_known(kind: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        raise InvalidOption(f"unknown {kind} {name!r}; known: {', '.join(known) or 'none'}")


class EntryEncoder(Encoder):
    """An Encoder of a catalogue entry. A subclass adds what its runtime knows: dimensions, device, weights."""

    def __init__(
        self,
        spec: ModelSpec,
        version: str,
        tokenizer: "TextTokenizer",
        prompts: Mapping[str, str],
        default_prompt: str | None,
    ) -> None:
        self.model = spec.id
        self.version = version
        self.normalizes = spec.normalize
        self.max_tokens = tokenizer.max_tokens
        self.matryoshka = spec.matryoshka
        self.prompts = MappingProxyType(prompts)
        self.tasks = MappingProxyType(spec.tasks)
        self.notes: tuple[str, ...] = ()
        self._names = PromptsAndTasks(self.prompts, default_prompt, self.tasks, spec.default_task)
        self._tokenizer = tokenizer

    def tokenize(self, texts: Sequence[Text], options: TextOptions) -> list[Tokens | TextTooLong]:
        self._names.task(options)  # a model without tasks refuses one
        return self._tokenizer(texts, self._names.prompt(options), options.truncate)

    @property
    def vocabulary(self) -> Vocabulary:
        return self._tokenizer.vocabulary

    def tokenized(self, text: str, options: TextOptions, special: bool = True, offsets: bool = True) -> TokenizedText:
        self._names.task(options)  # an unknown one is refused
        return self._tokenizer.tokenized(text, self._names.prompt(options), special, offsets)


def version_of(digest: str, dtype: str, quantization: Quantization | None = None) -> str:
    """The name of exact weights: the first 12 hexadecimal digits of their SHA-256, the dtype, the quantization."""
    return "-".join([digest[:12], dtype, *([quantization] if quantization else [])])


def batch_tokens(encoder: Encoder, lengths: Sequence[int]) -> int:
    """The cost of a batch of texts of these lengths, in computed tokens: with padding, if the encoder pads."""
    return sum(lengths) if encoder.packed else len(lengths) * max(lengths, default=0)


def check_options(encoder: Encoder, options: TextOptions, dimensions: int | None) -> None:
    """Refuse options that the encoder does not have. Raises InvalidOption."""
    if dimensions is not None:
        allowed = (*encoder.matryoshka, encoder.dimensions) if encoder.matryoshka else range(1, encoder.dimensions + 1)
        if dimensions not in allowed or not 1 <= dimensions <= encoder.dimensions:
            known = ", ".join(map(str, encoder.matryoshka))
            wanted = f"one of {known}" if known else f"from 1 to {encoder.dimensions}"
            raise InvalidOption(f"dimensions must be {wanted}, not {dimensions}")
    own = PromptsAndTasks(encoder.prompts, tasks=encoder.tasks)
    own.task(options)
    own.prompt(options)


def refuse_transformer_options(spec: ModelSpec, purpose: str) -> None:
    """Raises ModelUnavailable if the entry states an option of transformers. purpose: what such options are for."""
    for option in ("causal", "append_eos", "padding_side"):
        if getattr(spec, option) is not None:
            raise ModelUnavailable(spec.id, f"`{option}` is for {purpose}; take it out of its entry")


def finish(vectors: Vectors, normalize: bool, dimensions: int | None = None) -> Vectors:
    """Cut vectors (B, D) to their first `dimensions` values, then scale them to unit length.

    -> (B, dimensions or D) float32. A zero vector stays zero.
    """
    cut = np.ascontiguousarray(vectors[:, :dimensions], dtype=np.float32)
    if not normalize:
        return cut
    # Scaled by the largest value first, so that no square over- or underflows.
    largest = np.abs(cut).max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(cut, largest, out=np.zeros_like(cut), where=largest > 0)
    norms = np.linalg.norm(scaled, axis=1, keepdims=True)
    unit: Vectors = np.divide(scaled, norms, out=scaled, where=norms > 0)
    return unit


def cosine_rows(left: Vectors, right: Vectors) -> Vectors:
    """Cosine of each row of `left` (B, D) with the same row of `right` (B, D) -> (B,)."""
    cosines: Vectors = np.einsum("bd,bd->b", finish(left, True), finish(right, True))
    return cosines
