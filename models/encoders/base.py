"""What every encoder is, and the arithmetic that all of them share.

Owns the protocol, the options of a text and the finishing of vectors. Knows no framework but numpy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..catalogue import Quantization
from ..errors import BadDimensions, TextTooLong, UnknownPrompt, UnknownTask

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How texts are made into tokens.

    `prompt` is put in front of each text as it is; `prompt_name` names one of the model's own; with neither, the
    prompt of the task applies, or else the model's default prompt; with both, `prompt` wins. `task` names one of the
    model's tasks; without it its default task applies. `truncate` says which side of a text that is too long is cut
    off, or that it is an error; the prompt is always kept.
    """

    prompt: str | None = None
    prompt_name: str | None = None
    task: str | None = None
    truncate: Literal["end", "start", "error"] = "end"


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text as token ids, special tokens and prompt included.

    `prompt_tokens` counts the leading ones that belong to the prompt; 0 where there is none. `task` is the id of the
    task to run, None for a model without tasks.
    """

    ids: list[int]
    truncated: bool = False
    prompt_tokens: int = 0
    task: int | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Encoder(Protocol):
    """A loaded embedding model."""

    @property
    def model(self) -> str:
        """Its catalogue id."""

    @property
    def version(self) -> str:
        """The exact weights and their precision: see `version_of`."""

    @property
    def dimensions(self) -> int:
        """Length of its vectors, uncut."""

    @property
    def max_tokens(self) -> int:
        """Tokens it takes of one text, special tokens included."""

    @property
    def dtype(self) -> str:
        """What it computes in: fp32, bf16 or fp16."""

    @property
    def quantization(self) -> Quantization | None:
        """What its weights are stored in, where that is not the dtype."""

    @property
    def weight_bytes(self) -> int:
        """Bytes that its weights take on the device."""

    @property
    def device(self) -> str:
        """Where it really runs: cpu or cuda:0."""

    @property
    def packed(self) -> bool:
        """Whether a batch costs the sum of its tokens, and not its longest text times their number."""

    @property
    def normalizes(self) -> bool:
        """Whether its vectors are scaled to unit length where a request does not say."""

    @property
    def prompts(self) -> Mapping[str, str]:
        """Its named prompts."""

    @property
    def tasks(self) -> Mapping[str, int]:
        """Its tasks, by name; empty where it has none."""

    @property
    def matryoshka(self) -> Sequence[int]:
        """Lengths to which its vectors may be cut; empty: any."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was found at load that its operator should know, such as a fall-back to fp32."""

    def tokenize(self, texts: Sequence[str], options: TextOptions) -> list[Tokens | TextTooLong]:
        """Tokenise texts; one that is too long, where that is an error, stands in the list as its own error.

        Thread-safe. Raises UnknownPrompt, UnknownTask.
        """

    def encode(self, batch: Sequence[Tokens], between_layers: Callable[[], None] | None = None) -> Vectors:
        """Pooled vectors (B, dimensions) float32, in order, not normalised.

        All texts of a batch have the same task. `between_layers` is called, where the model has layers to stop
        between, before each of them but the first; it may itself encode another batch.
        To be called on the device's own thread only. Raises OutOfDeviceMemory.
        """

    def close(self) -> None:
        """Let go of the weights; nothing may be encoded afterwards."""


def version_of(digest: str, dtype: str, quantization: Quantization | None = None) -> str:
    """The name of exact weights: the first 12 hexadecimal digits of their SHA-256, the dtype, the quantization."""
    return "-".join([digest[:12], dtype, *([quantization] if quantization else [])])


def batch_tokens(encoder: Encoder, lengths: Sequence[int]) -> int:
    """What a batch of texts of these lengths costs, in tokens computed: with padding, where the encoder pads."""
    return sum(lengths) if encoder.packed else len(lengths) * max(lengths, default=0)


def check_options(encoder: Encoder, options: TextOptions, dimensions: int | None) -> None:
    """Refuse what the encoder cannot do, before any work. Raises BadDimensions, UnknownPrompt, UnknownTask."""
    if dimensions is not None and not 1 <= dimensions <= encoder.dimensions:
        raise BadDimensions(dimensions, encoder.dimensions, tuple(encoder.matryoshka))
    if dimensions is not None and encoder.matryoshka and dimensions not in (*encoder.matryoshka, encoder.dimensions):
        raise BadDimensions(dimensions, encoder.dimensions, tuple(encoder.matryoshka))
    if options.task is not None and options.task not in encoder.tasks:
        raise UnknownTask(options.task, tuple(encoder.tasks))
    if options.prompt is None and options.prompt_name is not None and options.prompt_name not in encoder.prompts:
        raise UnknownPrompt(options.prompt_name, tuple(encoder.prompts))


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
