"""What serves a model's requests, as the residency and discovery see it, whatever the model does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeGuard, cast

from models.catalogue import Kind, Quantization
from models.encoders.base import Encoder
from models.generation.base import GenerationEngine

Model: TypeAlias = Encoder | GenerationEngine


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a loaded model. memory_bytes: all that it takes on the device; max_tokens: of one request.

    dimensions, prompts: of an embedding model; 0 and none for one that generates.
    """

    kind: Kind
    model: str
    version: str
    device: str
    dtype: str
    quantization: Quantization | None
    memory_bytes: int
    max_tokens: int
    notes: tuple[str, ...]
    dimensions: int = 0
    prompts: Sequence[str] = ()


class Served(Protocol):
    """A loaded model at work."""

    @property
    def facts(self) -> Facts:
        """See Facts."""

    def start(self, on_died: Callable[[BaseException], None]) -> None:
        """Begin to work. on_died hears of an end that nobody asked for, since then nobody would answer its callers."""

    async def stop(self) -> None:
        """End; what waits is answered that the worker shuts down."""

    async def close(self) -> None:
        """Stop, then let go of the weights."""


def generates(model: Model) -> TypeGuard[GenerationEngine]:
    """Whether it is an engine, and not an encoder."""
    return hasattr(model, "step")


def facts_of(model: Model) -> Facts:
    """What a loaded model says of itself."""
    return _of_engine(model) if generates(model) else _of_encoder(cast(Encoder, model))


def _of_encoder(encoder: Encoder) -> Facts:
    return Facts(
        kind="embedding",
        model=encoder.model,
        version=encoder.version,
        device=encoder.device,
        dtype=encoder.dtype,
        quantization=encoder.quantization,
        memory_bytes=encoder.weight_bytes,
        max_tokens=encoder.max_tokens,
        notes=encoder.notes,
        dimensions=encoder.dimensions,
        prompts=tuple(encoder.prompts),
    )


def _of_engine(engine: GenerationEngine) -> Facts:
    facts = engine.facts
    return Facts(
        kind="generation",
        model=facts.model,
        version=facts.version,
        device=facts.device,
        dtype=facts.dtype,
        quantization=facts.quantization,
        memory_bytes=facts.weight_bytes + facts.kv_bytes,
        max_tokens=facts.max_tokens,
        notes=facts.notes,
    )
