"""A model whose load does not end: it is given up, and holds up no other."""

import asyncio
import threading

import nats
import pytest
from fake_loader import FakeLoader
from workers import running_worker

from subjects import MLClient
from subjects.errors import NotServed

OWN = {model: {"kind": "embedding", "folder": f"weights/{model}"} for model in ("a", "b", "c")}


class Hanging(FakeLoader):
    """Of the model `a` the load, or before it the process that opens it, does not end before `go`."""

    def __init__(self, opening: bool) -> None:
        super().__init__()
        self.go, self.began = threading.Event(), threading.Event()
        self.opening = opening

    def probe_for(self, spec, options):
        return spec if self.opening and spec.id == "a" and not self.go.is_set() else None

    def run_probe(self, probe):
        self.began.set()
        assert self.go.wait(60)

    def load(self, spec, options):
        if spec.id == "a" and not self.opening:
            assert self.go.wait(60)
        return super().load(spec, options)


@pytest.fixture(params=[False, True], ids=["load", "opening"])
def loader(request):
    loader = Hanging(request.param)
    yield loader
    loader.go.set()


@pytest.mark.parametrize("loader", [False], indirect=True)
async def test_a_load_that_hangs_is_given_up(nats_url, loader):
    async with running_worker(nats_url, loader=loader, catalogue=OWN, models=("b",), memory={"load_timeout_s": 0.3}):
        nc = await nats.connect(nats_url)
        ml = MLClient(nc, timeout_s=20, retries=0)
        with pytest.raises(NotServed, match=r"given up after 0\.3 s"):
            await ml.embed("x", model="a")
        assert (await ml.embed("x", model="c")).model == "c"
        with pytest.raises(NotServed, match="start the worker again"):
            await ml.models.load("a")
        assert loader.loads["a"] == 0
        await nc.close()


@pytest.mark.parametrize("loader", [True], indirect=True)
async def test_a_probe_holds_up_no_other_load(nats_url, loader):
    async with running_worker(nats_url, loader=loader, catalogue=OWN, models=("b",)):
        nc = await nats.connect(nats_url)
        ml = MLClient(nc, timeout_s=20, retries=0)
        first = asyncio.create_task(ml.embed("x", model="a"))
        assert await asyncio.to_thread(loader.began.wait, 20)
        assert (await ml.embed("x", model="c")).model == "c"
        loader.go.set()
        assert (await first).model == "a"
        await nc.close()
