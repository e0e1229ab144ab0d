"""A loader of fake models, for tests of what happens around a load: how long it takes, how it fails, what it weighs.

Each load waits for `gate`; the n-th load of a model gives version `v<n>-fp32`. Knows no file and no torch.
"""

import threading
from collections import Counter

from fake_encoder import FakeEncoder
from fake_engine import FakeEngine

from models.catalogue import ModelSpec
from models.errors import UnknownVersion
from models.loading.loader import LoadOptions
from service.residency.loader import LoadOverrides, ModelLoader
from service.settings import Settings

GB = 10**9


class FakeLoader(ModelLoader):
    """sizes: model -> bytes, measured; expected_sizes: what is believed before. failures: model -> what a load raises.

    entered: set once a load began. loads: how many of each model did. given_back: a device for each model that went.
    """

    def __init__(self, budget_bytes: int = 10 * GB) -> None:
        super().__init__(Settings())
        self.budget = budget_bytes
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.loads: Counter[str] = Counter()
        self.encoders: dict[str, list[FakeEncoder]] = {}
        self.engines: dict[str, list[FakeEngine]] = {}
        self.sizes: dict[str, int] = {}
        self.expected_sizes: dict[str, int] = {}
        self.dimensions: dict[str, int] = {}
        self.failures: dict[str, BaseException] = {}
        self.given_back: list[str] = []
        self.gave_back = threading.Event()
        self.choices: dict[str, list[LoadOverrides]] = {}
        self.versions: tuple[str, ...] = ("base",)

    def prepare(self) -> None:
        """Nothing computes here."""

    def fetch(self, spec: ModelSpec, choice: LoadOverrides) -> None:
        """All fakes are on this machine."""

    def options(self, spec: ModelSpec, choice: LoadOverrides) -> LoadOptions:
        if choice.version not in (None, *self.versions):
            raise UnknownVersion(spec.id, str(choice.version), self.versions)
        self.choices.setdefault(spec.id, []).append(choice)
        return LoadOptions()

    def probe_for(self, spec: ModelSpec, options: LoadOptions) -> None:
        """A fake comes with no file."""

    def abandon(self) -> None:
        """Nothing is read."""

    def expected(self, spec: ModelSpec, options: LoadOptions) -> tuple[str, int]:
        return "cpu", self.expected_sizes.get(spec.id, self.sizes.get(spec.id, GB))

    def load(self, spec: ModelSpec, options: LoadOptions) -> FakeEncoder | FakeEngine:
        self.loads[spec.id] += 1
        number = self.loads[spec.id]
        self.entered.set()
        assert self.gate.wait(60)
        if spec.id in self.failures:
            raise self.failures[spec.id]
        if spec.kind == "generation":
            engine = FakeEngine(spec.id, f"v{number}-fp32", weight_bytes=self.sizes.get(spec.id, GB))
            self.engines.setdefault(spec.id, []).append(engine)
            return engine
        encoder = FakeEncoder(spec.id)
        encoder.version = f"v{number}-fp32"
        encoder.weight_bytes = self.sizes.get(spec.id, GB)
        encoder.dimensions = self.dimensions.get(spec.id, encoder.dimensions)
        self.encoders.setdefault(spec.id, []).append(encoder)
        return encoder

    def give_back(self, device: str) -> None:
        self.given_back.append(device)
        self.gave_back.set()

    def budget_bytes(self, device: str) -> int:
        return self.budget
