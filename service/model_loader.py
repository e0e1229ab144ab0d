"""How this worker loads models: as its settings say. torch takes seconds to import, and comes with the first model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from models import hub, memory
from models.cache import LoadCache
from models.catalogue import Dtype, ModelSpec, Quantization
from models.encoders.base import Encoder
from models.versions import version_folder

from .config import Settings

if TYPE_CHECKING:
    from models.loader import LoadOptions

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Choice:
    """How an operator wants a model loaded. None: as its entry and the settings say, and in its live version."""

    dtype: Dtype | None = None
    quantization: Quantization | None = None
    version: str | None = None
    pinned: bool = False


class ModelLoader:
    """Everything about a load that blocks; `prepare` is for the device's thread, most of the rest for the loader's.

    on_step hears of each step of a load, in the present tense.
    """

    def __init__(self, settings: Settings, on_step: OnStep = lambda step: None) -> None:
        self._settings = settings
        self.on_step = on_step

    def prepare(self) -> None:
        """Set up the calling thread to compute with all threads that it may."""
        from models.device import configure_threads

        configure_threads(self._threads)

    def fetch(self, spec: ModelSpec) -> None:
        """Download a model that is not on this machine, from any thread. Raises ModelError."""
        from models.loader import graph_dtype, require_served

        require_served(spec)
        graph = graph_dtype(spec, self.options(spec, Choice()))
        if not hub.is_present(spec, graph):
            self.on_step(f"downloading {spec.id}")
            hub.locate(spec, True, graph)

    def options(self, spec: ModelSpec, choice: Choice) -> "LoadOptions":
        """How a model is loaded. Raises UnknownVersion."""
        from models.loader import LoadOptions

        settings = self._settings
        return LoadOptions(
            device=settings.device,
            dtype=choice.dtype or (None if settings.dtype == "auto" else settings.dtype),
            quantization=choice.quantization,
            folder=version_folder(settings.checkpoints_dir, spec.id, choice.version),
            download=False,
            threads=self._threads,
            memory_limit_bytes=self._limit_bytes,
            cache=LoadCache(settings.cache_dir),
        )

    def expected(self, spec: ModelSpec, options: "LoadOptions") -> tuple[str, int]:
        """Where a model will be loaded, and about how many bytes it will take there. Raises ModelError."""
        from models.loader import expected_bytes

        return expected_bytes(spec, options)

    def load(self, spec: ModelSpec, options: "LoadOptions") -> Encoder:
        """Load a model, computing with one thread alone. Raises ModelError."""
        self.on_step("importing torch")
        from models import loader
        from models.device import configure_threads

        configure_threads(1)
        return loader.load(spec, options, lambda step: self.on_step(f"{spec.id}: {step}"))

    def drop(self, encoder: Encoder) -> None:
        """Let go of an encoder that never served."""
        encoder.close()
        self.give_back(encoder.device)

    def give_back(self, device: str) -> None:
        """Return the memory of closed models to the system."""
        memory.give_back(device)

    def budget_bytes(self, device: str) -> int:
        """What models may take on a device."""
        return self._limit_bytes or memory.default_budget(device)

    @property
    def _limit_bytes(self) -> int | None:
        gigabytes = self._settings.memory.budget_gb
        return int(gigabytes * 1e9) if gigabytes else None

    @property
    def _threads(self) -> int:
        from models.device import default_threads

        return self._settings.threads or default_threads()
