"""A fleet for tests of versions: workers with a data directory each, and a fake model of which each version differs.

A version's vectors depend on its weights' digest, so that a test sees which one answered.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fake_encoder import DIMENSIONS, FakeEncoder
from fake_loader import FakeLoader
from trained_versions import trained
from workers import running_worker

from models.catalogue import ModelSpec
from models.encoders.base import TextOptions, Tokens, Vectors, finish
from models.loading.loader import LoadOptions
from models.training.verify.check_texts import canary_texts, write_canary
from models.weights.versions import keep, record_of, version_folder
from service.app import Started
from service.bus.connection import connected
from service.bus.settings import NatsSettings
from service.jobs.fleet.live import LiveVersions
from service.jobs.fleet.rollout import Rollout
from service.residency.loader import LoadOverrides
from service.residency.manager import ModelManager

MODEL = "a"
BASE_WEIGHTS = "0" * 64


class VersionEncoder(FakeEncoder):
    """weights: the digest of its version; they turn every vector a little."""

    def __init__(self, model: str, weights: str) -> None:
        super().__init__(model)
        self.version = f"{weights[:12]}-fp32"
        self._turn = np.random.default_rng(int(weights[:12], 16)).normal(size=DIMENSIONS).astype(np.float32)

    def encode(self, batch: Any, between_layers: Callable[[], None] | None = None) -> Vectors:
        return super().encode(batch, between_layers) + self._turn


class VersionLoader(FakeLoader):
    """Loads the version that lies in the folder of a data directory. fails: weights, by 12 digits, that do not load."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__()
        self._checkpoints = data_dir / "checkpoints"
        self.fails: dict[str, Exception] = {}
        self.loaded: list[str] = []

    def options(self, spec: ModelSpec, choice: LoadOverrides) -> LoadOptions:
        return LoadOptions(folder=version_folder(self._checkpoints, spec.id, choice.version))

    def load(self, spec: ModelSpec, options: LoadOptions) -> VersionEncoder:
        record = record_of(options.folder) if options.folder else None
        weights = record.weights_sha256 if record else BASE_WEIGHTS
        self.entered.set()
        assert self.gate.wait(60)
        if weights[:12] in self.fails:
            raise self.fails[weights[:12]]
        self.loaded.append(weights[:12])
        return VersionEncoder(spec.id, weights)


async def until(residency: ModelManager, model: str, version: str) -> None:
    """Wait until a worker serves a model in a version that begins so."""
    async with asyncio.timeout(30):
        while not ((resident := residency.registry.current(model)) and resident.version.startswith(version)):
            await residency._changed.wait()


@dataclass
class Member:
    """A worker of the fleet. rollout: as a job's last stage on this machine has it."""

    started: Started
    loader: VersionLoader
    data_dir: Path
    rollout: Rollout

    @property
    def checkpoints(self) -> Path:
        return self.data_dir / "checkpoints"

    @property
    def serves(self) -> str:
        """The weights that answer, by 12 digits."""
        resident = self.started.manager.registry.current(MODEL)
        assert resident is not None
        return resident.version.partition("-")[0]

    async def until_serves(self, weights: str) -> None:
        await until(self.started.manager, MODEL, weights)

    def make(self, text: str, day: int = 0, vectors_of: str | None = None, **report: Any) -> str:
        """Keep a version on this machine as a training leaves it -> its name.

        vectors_of: weights, as text, whose vectors it promises; absent: its own. report: instead of an acceptance.
        """
        candidate = self.data_dir / "candidate"
        name = trained(candidate, text, day=day, **report or {"accepted": True})
        promised = trained(self.data_dir / "other", vectors_of)[-12:] if vectors_of else name[-12:]
        texts = canary_texts()
        write_canary(candidate / "report", texts, expected_vectors(promised, texts))
        keep(candidate, self.checkpoints, MODEL, name)
        return name


def expected_vectors(weights: str, texts: list[str]) -> Vectors:
    encoder = VersionEncoder(MODEL, weights)
    tokens = [each for each in encoder.tokenize(texts, TextOptions()) if isinstance(each, Tokens)]
    return finish(encoder.encode(tokens), True)


@dataclass
class Fleet:
    """Workers on one server."""

    url: str
    folder: Path
    members: list[Member] = field(default_factory=list)

    @asynccontextmanager
    async def joined(self, name: str, patience_s: float = 30.0) -> AsyncIterator[Member]:
        """One more worker, with a data directory of this name."""
        data_dir = self.folder / name
        loader = VersionLoader(data_dir)
        own = {MODEL: {"kind": "embedding", "folder": str(self.folder / "weights")}}
        settings = NatsSettings(url=self.url, reconnect_wait_s=0.1, inbox_prefix="_INBOX_worker")
        async with (
            running_worker(self.url, loader=loader, data_dir=data_dir, models=(MODEL,), catalogue=own) as started,
            connected(settings) as nc,
        ):
            rollout = Rollout(
                nc,
                started.manager,
                lambda: connected(settings),
                data_dir / "checkpoints",
                swap_timeout_s=patience_s,
                live=LiveVersions(nc),
            )
            member = Member(started, loader, data_dir, rollout)
            self.members.append(member)
            try:
                yield member
            finally:
                self.members.remove(member)

    async def until_all_serve(self, weights: str) -> None:
        await asyncio.gather(*(member.until_serves(weights) for member in self.members))
