"""Fine-tuning's streams and buckets in a JetStream domain, as NATS_CONTEXT's `jetstream_domain` names it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from nats_server import NatsServer

from service.bus.client import BusClient
from service.bus.connection import connected
from service.bus.settings import NatsSettings
from service.jobs import setup
from service.jobs.bucket import NotSetUp
from service.jobs.objects import Objects
from service.jobs.store import JobStore
from service.jobs.sweep import Sweep
from subjects import names
from subjects.errors import NotFound
from subjects.jobs import Job


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    conf = tmp_path / "domain.conf"
    conf.write_text(f'jetstream {{ domain: hub, store_dir: "{tmp_path}" }}\n')
    server = NatsServer(tmp_path, "-c", str(conf))
    try:
        yield server.start()
    finally:
        server.stop()


async def test_all_that_fine_tuning_asks_goes_to_the_domain(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    asked: list[str] = []
    publish = BusClient.publish

    async def noting(self: BusClient, subject: str, *message: Any, **fields: Any) -> None:
        asked.append(subject)
        await publish(self, subject, *message, **fields)

    monkeypatch.setattr(BusClient, "publish", noting)
    async with connected(NatsSettings(url=server.url, jetstream_domain="hub")) as nc:
        assert len(await setup.create(nc)) == 5
        store = JobStore(nc)
        await store.create(Job(id="one", model="minilm", source="code", state="queued", created_at=now, updated_at=now))
        await Sweep(nc, store).once()
        with pytest.raises(NotFound):
            await Objects(nc, names.DATA_BUCKET).meta("nothing")
    requests = [subject for subject in asked if ".API." in subject]
    assert requests != []
    assert [subject for subject in requests if not subject.startswith("$JS.hub.API.")] == []


async def test_another_domain_is_not_set_up(server: NatsServer) -> None:
    async with connected(NatsSettings(url=server.url, jetstream_domain="elsewhere")) as nc:
        with pytest.raises(NotSetUp):
            await setup.create(nc)
