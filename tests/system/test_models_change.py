"""`mlbus models load|unload|reload` against two workers of this process, whose loaders make fake models."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_loader import FakeLoader
from shell import Shell
from workers import running_worker

from models.errors import ModelUnavailable

OWN = {"a": {"kind": "embedding", "folder": "weights/a"}}


@dataclass(frozen=True)
class Fleet:
    """Two workers on one server."""

    loaders: tuple[FakeLoader, FakeLoader]
    url: str
    folder: Path

    async def models(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of `mlbus models`."""
        ended = await Shell(self.folder, self.url, ("models",)).run(*arguments)
        return ended.code, ended.out, ended.err

    async def done(self, *arguments: str) -> list[dict[str, Any]]:
        """What every worker answers, where none fails."""
        code, out, err = await self.models(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)


@pytest.fixture
async def fleet(nats_url: str, tmp_path: Path) -> AsyncIterator[Fleet]:
    loaders = FakeLoader(), FakeLoader()
    one, other = (running_worker(nats_url, loader=loader, catalogue=OWN) for loader in loaders)
    async with one, other:
        yield Fleet(loaders, nats_url, tmp_path)


async def test_every_worker_loads_as_it_is_told(fleet: Fleet) -> None:
    replies = await fleet.done("load", "a", "--quantization", "int8", "--dtype", "bf16", "--pin")
    assert len({reply["worker"] for reply in replies}) == 2
    assert {reply["loaded"]["pinned"] for reply in replies} == {True}
    for loader in fleet.loaders:
        (choice,) = loader.choices["a"]
        assert (choice.quantization, choice.dtype) == ("int8", "bf16")
    code, out, _ = await fleet.models("load", "a", "--no-pin")
    assert code == 0
    heading, *rows = out.splitlines()
    assert heading.split() == ["worker", "model", "version", "device", "memory", "pinned"]
    assert {tuple(row.split()[1:]) for row in rows} == {("a", "loaded", "v1-fp32", "cpu", "1,000", "MB", "no")}


async def test_one_worker_loads_by_its_id(fleet: Fleet) -> None:
    worker = (await fleet.done("reload", "minilm"))[1]["worker"]
    (reply,) = await fleet.done("load", "a", "--worker", worker)
    assert reply["worker"] == worker
    assert sum(loader.loads["a"] for loader in fleet.loaders) == 1
    code, _, err = await fleet.models("load", "a", "--worker", "nobody")
    assert code == 1
    assert "worker nobody: no worker listens" in err


async def test_a_worker_without_the_model_is_no_failure_beside_one_that_unloads_it(fleet: Fleet) -> None:
    workers = [reply["worker"] for reply in await fleet.done("load", "a")]
    await fleet.done("unload", "a", "--worker", workers[0])
    code, out, err = await fleet.models("unload", "a", "--json")
    assert code == 0
    assert [reply["worker"] for reply in json.loads(out)] == workers[1:]
    assert err == f"worker {workers[0]}: model 'a' is not loaded on this worker\n"
    code, out, err = await fleet.models("unload", "a")
    assert (code, out) == (1, "")
    assert all(f"worker {worker}: model 'a' is not loaded" in err for worker in workers)


async def test_every_worker_swaps_and_names_a_version_that_it_lacks(fleet: Fleet) -> None:
    assert {reply["loaded"]["version"] for reply in await fleet.done("reload", "minilm")} == {"v2-fp32"}
    code, _, err = await fleet.models("reload", "minilm", "--version", "nope")
    assert code == 1
    assert err.count("has no version 'nope'; it has base") == 2


async def test_a_worker_that_fails_is_named_and_the_others_are_shown(fleet: Fleet) -> None:
    fleet.loaders[1].failures = {"a": ModelUnavailable("a", "its shard 2 is missing; pull it again")}
    code, out, err = await fleet.models("load", "a", "--json")
    (reply,) = json.loads(out)
    assert (code, reply["loaded"]["version"]) == (1, "v1-fp32")
    assert err.startswith("mlbus: worker ")
    assert err.endswith(": model 'a' is unavailable: its shard 2 is missing; pull it again\n")
    assert reply["worker"] not in err
