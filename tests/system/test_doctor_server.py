"""What `mlbus doctor` finds out about the server itself, and about inboxes that nobody answers."""

from pathlib import Path

import pytest
from nats_server import PASSWORDS, NatsServer, secured_server

from service.bus.announcement import announced
from service.bus.credentials import FILE_NAME
from service.bus.embedded import EmbeddedSettings, embedded_server
from service.bus.settings import NatsSettings
from service.cli import doctor
from service.cli.doctor_machine import Finding
from service.settings import Settings


async def findings(server: NatsServer, folder: Path) -> dict[str, Finding]:
    settings = Settings(nats_url=server.url, data_dir=folder)
    return {finding.check: finding for finding in await doctor.check_nats(settings, 5)}


async def test_the_system_account_is_asked(
    secured_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLBUS_SYSTEM_PASSWORD", PASSWORDS["system"])
    found = (await findings(secured_server, tmp_path))["server"]
    assert found.status == "ok"
    assert "connections" in found.found
    assert found.found.endswith("JetStream keeps 0.0 of 32 GiB")


@pytest.mark.parametrize("password", [None, "a guess"])
async def test_a_server_that_is_not_ours_is_not_asked(
    secured_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str | None
) -> None:
    if password:
        monkeypatch.setenv("MLBUS_SYSTEM_PASSWORD", password)
    assert "server" not in await findings(secured_server, tmp_path)


@pytest.mark.parametrize("elsewhere", ["nats://elsewhere:4222", "nats://127.0.0.1:1"])
@pytest.mark.parametrize("in_environment", [None, "", '""'])
async def test_the_password_of_an_embedded_server_goes_to_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: str, in_environment: str | None
) -> None:
    (tmp_path / FILE_NAME).write_text("MLBUS_SYSTEM_PASSWORD=ours\n")
    monkeypatch.setattr(doctor, "connected", lambda _: pytest.fail("it would have been sent"))
    if in_environment is not None:
        monkeypatch.setenv("MLBUS_SYSTEM_PASSWORD", in_environment)
    with announced(tmp_path, "nats://127.0.0.1:2"):
        asked = NatsSettings(url=f"nats://127.0.0.1:2,{elsewhere}")
        assert await doctor._server(asked, Settings(nats_url=asked.url, data_dir=tmp_path)) == []
    asked = NatsSettings(url=elsewhere)
    assert await doctor._server(asked, Settings(nats_url=asked.url, data_dir=tmp_path)) == []


async def test_the_embedded_server_beside_us_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLBUS_SYSTEM_PASSWORD", raising=False)
    async with embedded_server(EmbeddedSettings(data_dir=tmp_path, port=0)) as server:
        settings = Settings(nats_url=server.url, data_dir=tmp_path)
        (found,) = await doctor._server(NatsSettings(url=server.url), settings)
    assert found.status == "ok"


async def test_a_monitoring_port_that_is_open_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLBUS_SYSTEM_PASSWORD", PASSWORDS["system"])
    server = secured_server(tmp_path / "nats", "-m", "-1")
    try:
        found = (await findings(server.start(), tmp_path))["server"]
    finally:
        server.stop()
    assert (found.status, "asks for no password" in found.found) == ("warn", True)


async def test_an_inbox_prefix_of_an_older_configuration_is_told(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_USER", "client")
    monkeypatch.setenv("NATS_PASSWORD", "x")
    monkeypatch.setenv("NATS_INBOX_PREFIX", "_INBOX_client")
    found = (await findings(nats_server, tmp_path))["worker"]
    assert found.status == "fail"
    assert found.found == "workers answer nothing below _INBOX_client, the inbox prefix of user 'client'"
    assert found.advice.startswith("_INBOX_ml.client is that of the present nats-server.conf")
