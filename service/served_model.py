"""A loaded model at work, whatever it does: what is known of it, and how it starts and ends."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard, TypeVar, TypeVarTuple, Unpack, cast

from models.catalogue import Kind, Quantization
from models.encoders.base import Encoder
from models.generation.types import EngineFacts, GenerationEngine

from .generation.shortest_job_first import ShortestJobFirst
from .runtime.device_thread import DeviceThread
from .runtime.panics import panics_as_errors

ArgTs = TypeVarTuple("ArgTs")
ResultT = TypeVar("ResultT")
TOKENIZER_THREADS = 2
CHAR_S = 10e-6
"""How much longer a text may wait for the tokenizer for each of its characters: ten times what that takes."""
Model: TypeAlias = Encoder | GenerationEngine


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a loaded model.

    memory_bytes: everything that it takes on the device. max_tokens: of one request. dimensions, prompts: of an
    embedding model; 0 and none for one that generates.
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


class ServedModel(ABC):
    """A model and the task that serves its requests; owns both, and the model's weights."""

    def __init__(self, model: Model, device: DeviceThread) -> None:
        self.facts = facts_of(model)
        self._device = device
        self._close_model = model.close
        self._tokenizers = ShortestJobFirst(TOKENIZER_THREADS, CHAR_S, f"tokenizer.{self.facts.model}")
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def _serve(self) -> None:
        """Serve until cancelled, then tell those who wait."""

    async def on_tokenizer(
        self, size: int, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs
    ) -> ResultT:
        """The result of a function on a thread that tokenizes; short jobs go first. size: characters or ids."""
        return await self._tokenizers.run(size, _unless_it_panics, function, *arguments)

    def _stop_tokenizers(self) -> None:
        """End the threads that tokenize, without waiting for them."""
        self._tokenizers.close()

    def start(self, on_died: Callable[[BaseException], None]) -> None:
        """Start to serve. on_died: called with the error if serving fails: from then on nobody answers callers."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()):
                on_died(error)

        self._task = asyncio.create_task(self._serve(), name=f"serve.{self.facts.model}")
        self._task.add_done_callback(ended)

    async def stop(self) -> None:
        """Stop serving; requests that wait are told that the worker shuts down."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._stop_tokenizers()

    async def close(self) -> None:
        """Stop, then release the weights on the device's thread, where a pass or step may still run.

        Urgently: under a flood of requests closed models would pile up behind them.
        """
        await self.stop()
        await self._device.run(self._close_model, urgent=True)


def _unless_it_panics(function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs) -> ResultT:
    with panics_as_errors("the tokeniser"):
        return function(*arguments)


def generates(model: Model) -> TypeGuard[GenerationEngine]:
    """Whether a model is an engine, and not an encoder."""
    return hasattr(model, "step")


def facts_of(model: Model) -> Facts:
    """The facts of a loaded model."""
    known = model.facts if generates(model) else cast(Encoder, model)
    return Facts(
        kind="generation" if isinstance(known, EngineFacts) else "embedding",
        model=known.model,
        version=known.version,
        device=known.device,
        dtype=known.dtype,
        quantization=known.quantization,
        memory_bytes=known.weight_bytes + (known.kv_bytes if isinstance(known, EngineFacts) else 0),
        max_tokens=known.max_tokens,
        notes=known.notes,
        dimensions=0 if isinstance(known, EngineFacts) else known.dimensions,
        prompts=() if isinstance(known, EngineFacts) else tuple(known.prompts),
    )
