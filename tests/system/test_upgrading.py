"""`mlbus doctor` on a server that was set up for an older mlbus, as docs/security.md says under Upgrading."""

from pathlib import Path

import nats
from nats_server import CONF, NatsServer, as_role
from nats_server import secured_server as secured
from workers import running_worker

from service.cli import doctor
from service.cli.doctor import SENT_SINCE
from service.jobs import setup
from service.settings import Settings
from subjects import names


async def findings(url: str) -> dict[str, tuple[str, str, str]]:
    found = await doctor.check_nats(Settings(nats_url=url), 10)
    return {each.found: (each.check, each.status, each.advice) for each in found}


async def test_an_older_file_is_named_with_what_it_does_not_grant(tmp_path: Path) -> None:
    conf = tmp_path / "nats-server.conf"
    conf.write_text(CONF.read_text().replace(f'  "{names.SCHEMA}"\n', ""))
    server = secured(tmp_path / "nats", conf=conf).start()
    try:
        async with running_worker(as_role(server, "worker")):
            check, status, advice = next(
                rest for found, rest in (await findings(server.url)).items() if f"may not ask {names.SCHEMA}" in found
            )
    finally:
        server.stop()
    assert (check, status) == ("nats-server.conf", "warn")
    assert "docs/security.md" in advice


async def test_an_older_file_is_named_with_what_a_worker_misses(tmp_path: Path) -> None:
    granted = ('"$O.ml_data.C.*.*", "$O.ml_data.M.*"', '"$SRV.PING.ml.*"', ', "$JS.API.STREAM.PURGE.ML_JOBS"')
    text = CONF.read_text()
    for each in granted:
        assert each in text
        text = text.replace(each, "")
    (conf := tmp_path / "nats-server.conf").write_text(text)
    server = secured(tmp_path / "nats", conf=conf).start()
    try:
        async with await nats.connect(as_role(server, "admin")) as nc:
            await setup.create(nc)
            before = [(await nc.jetstream().stream_info(each.stream)).state.last_seq for each in setup.STORAGE]
            for role, missing in (("worker", list(SENT_SINCE)), ("admin", [])):
                told = [
                    what for what, (_, status, _) in (await findings(as_role(server, role))).items() if status == "warn"
                ]
                assert [each for each in SENT_SINCE if any(each in what for what in told)] == missing
            after = [(await nc.jetstream().stream_info(each.stream)).state.last_seq for each in setup.STORAGE]
            assert [after[0], *after[2:]] == [before[0], *before[2:]], "all but the key that doctor writes"
    finally:
        server.stop()


async def test_older_streams_are_named_until_they_are_brought_up_to_date(secured_server: NatsServer) -> None:
    url = as_role(secured_server, "admin")
    async with await nats.connect(url) as nc:
        assert {check for check, status, _ in (await findings(url)).values() if status == "warn"} == {"worker"}
        await setup.create(nc)
        js = nc.jetstream()
        await js.update_stream((await js.stream_info(names.JOBS_STREAM)).config.evolve(max_msgs=5))
        old = f"stream {names.JOBS_STREAM}: max_msgs 5 to 33"
        check, status, advice = (await findings(url))[old]
        assert (check, status, "mlbus admin init" in advice) == ("JetStream", "warn", True)
        await setup.create(nc)
        assert old not in await findings(url)
