"""A worker one of whose models cannot be had: it serves the others, says so everywhere, and tries again."""

import asyncio
from typing import Any

import pytest
from fake_loader import GB, FakeLoader
from http_probe import asked
from structlog.testing import capture_logs
from workers import running_worker

from models.errors import DeviceFailed, ModelUnavailable
from service.app import worker
from service.cli import doctor
from service.residency import first_models
from service.runtime.stop import Stop, StoppedEarly
from service.settings import Settings
from subjects import MLClient
from subjects.errors import NotServed

DAMAGED = ModelUnavailable("smollm2", "its file is damaged")
NAMED = ("minilm", "smollm2")


@pytest.fixture
def loader() -> FakeLoader:
    """smollm2 cannot be loaded."""
    loader = FakeLoader()
    loader.failures["smollm2"] = DAMAGED
    return loader


@pytest.fixture
async def ml(nats_url):
    async with await MLClient.connect(nats_url) as client:
        yield client


async def info(ml: MLClient) -> dict[str, str]:
    [answer] = await ml.discover("INFO", wait_s=1)
    return answer["metadata"]


async def test_the_others_are_served_and_it_is_said_everywhere(nats_url, ml, loader):
    with capture_logs() as logs:
        async with running_worker(nats_url, loader=loader, models=NAMED, metrics_port=0) as started:
            assert (await ml.embed("x")).model == "minilm"
            with pytest.raises(NotServed, match="its file is damaged"):
                await ml.generate("x")  # it was chosen, and no other speaks for it
            assert (await info(ml))["missing.smollm2"] == str(DAMAGED)
            [listed] = [model for model in (await ml.models.list()).models if model.id == "smollm2"]
            assert listed.failure == str(DAMAGED)
            assert await asked(started.metrics_port, "readyz") == (503, f"{DAMAGED}\n")
            assert "\nmlbus_models_missing 1.0" in (await asked(started.metrics_port, "metrics"))[1]
            found = await doctor.check_nats(Settings(nats_url=nats_url), 10)
    assert any(finding.found == f"it serves without smollm2: {DAMAGED}" for finding in found)
    assert {"event": "model.missing", "model": "smollm2", "reason": str(DAMAGED), "log_level": "warning"} in logs


async def test_it_is_tried_again_until_it_is_there(nats_url, ml, loader, monkeypatch):
    monkeypatch.setattr(first_models, "RETRY_S", 0.01)
    async with running_worker(nats_url, loader=loader, models=NAMED, metrics_port=0) as started, asyncio.timeout(20):
        while loader.loads["smollm2"] < 3:
            await info(ml)
        loader.failures.clear()
        while any(name.startswith("missing") for name in await info(ml)):
            pass
        assert (await ml.generate("x", max_tokens=1)).model == "smollm2"
        assert (await asked(started.metrics_port, "readyz"))[0] == 200


@pytest.mark.parametrize("setting", [{"models": NAMED}, {"memory": {"pinned": ("smollm2",)}}])
async def test_strict_keeps_it_from_starting(nats_url, loader, setting: dict[str, Any]):
    with pytest.raises(ModelUnavailable, match="its file is damaged"):
        async with running_worker(nats_url, loader=loader, strict=True, **setting):
            pass


async def test_a_worker_that_can_have_none_of_them_does_not_start(nats_url, loader):
    with pytest.raises(ModelUnavailable, match="its file is damaged"):
        async with running_worker(nats_url, loader=loader, models=("smollm2",)):
            pass


async def test_where_nobody_chose_the_next_default_serves_prompts_as_long_as_it_is_missing(nats_url, ml, loader):
    async with worker(Settings(nats_url=nats_url, metrics_port=-1), Stop(), loader=loader) as started:
        assert [facts.model for facts in started.models] == ["minilm", "tiny_coder"]
        assert (await ml.generate("x", max_tokens=1)).model == "tiny_coder"
        with pytest.raises(NotServed, match="its file is damaged"):
            await ml.generate(messages=[{"role": "user", "content": "x"}])
        loader.failures.clear()
        await started.manager.load("smollm2")
        assert (await ml.generate("x", max_tokens=1)).model == "smollm2"


async def test_what_does_not_fit_beside_the_others_comes_when_it_is_asked_for(nats_url, ml, loader, monkeypatch):
    monkeypatch.setattr(first_models, "RETRY_S", 0.01)
    loader.failures.clear()
    loader.budget = GB + 1000  # a little more: keys and values count
    async with running_worker(nats_url, loader=loader, models=NAMED):
        assert "smollm2' takes 1.00 GB" in (await info(ml))["missing.smollm2"]
        assert (await ml.generate("x", max_tokens=1)).model == "smollm2"
        assert "missing.smollm2" not in await info(ml)
    assert loader.loads == {"minilm": 1, "smollm2": 1}


async def test_a_device_that_fails_while_a_model_is_loaded_ends_the_worker(nats_url, loader):
    loader.failures["smollm2"] = DeviceFailed("cuda", "CUDA error: an assert")
    stop = Stop()
    with pytest.raises((StoppedEarly, DeviceFailed)):
        async with worker(Settings(nats_url=nats_url, metrics_port=-1, models=NAMED), stop, loader=loader):
            pass
    assert stop.code == 1


async def test_a_default_that_nobody_chose_is_not_worth_a_download(nats_url, ml, monkeypatch):
    loader = FakeLoader()
    monkeypatch.setattr(first_models.hub, "is_present", lambda spec: spec.id != "smollm2")
    async with worker(Settings(nats_url=nats_url, metrics_port=-1), Stop(), loader=loader):
        assert loader.loads["smollm2"] == 0
        assert (await ml.generate("x", max_tokens=1)).model == "tiny_coder"
        assert "mlbus models pull smollm2" in (await info(ml))["missing.smollm2"]
