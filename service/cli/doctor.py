"""`mlbus doctor`: runs all checks and prints what they found. Those of NATS and of the workers are here."""

import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import typer
from nats.aio.client import Client
from nats.js.api import Header
from rich.text import Text

from subjects import names
from subjects.client import MLClient
from subjects.client.discovery import ask_workers
from subjects.errors import MLError, Unavailable

from ..app import nats_settings
from ..bus.announcement import announced_url
from ..bus.causes import Denied
from ..bus.connection import connected, settled
from ..bus.credentials import FILE_NAME, inbox_prefix, password
from ..bus.errors import BusError, Unreachable
from ..bus.jetstream import NotStored
from ..bus.settings import NatsSettings
from ..endpoint.reply_subject import JETSTREAM_INBOX, ReplySubjects
from ..jobs import setup
from ..jobs.bucket import NotSetUp
from ..jobs.retry import TROUBLE
from ..settings import BadSettings, Settings, read_settings
from . import doctor_machine
from .ask import STALL_S, Connection, MayNotAsk, permitted
from .doctor_machine import Finding
from .options import Config, Json, NatsUrl, Timeout
from .output import out, print_json, spinner

GRANTED_SINCE: Mapping[str, bytes] = {
    names.SCHEMA: names.EMBED.encode(),
    names.JOBS_WATCH: b"none",
    names.FINETUNE_UPLOAD: b"{}",
}
"""Subjects that newer versions of nats-server.conf grant to clients, with bodies that do nothing."""
_NEVER_NEXT = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(2**63 - 1)}
SENT_SINCE: Mapping[str, tuple[bytes, dict[str, str] | None]] = {
    f"$SRV.PING.{names.SERVICE}.doctor": (b"", None),
    f"$JS.API.STREAM.PURGE.{names.JOBS_STREAM}": (b'{"filter":"ml.queue.doctor"}', None),
    f"$O.{names.DATA_BUCKET}.C.doctor.doctor": (b"", _NEVER_NEXT),
    f"$O.{names.DATA_BUCKET}.M.doctor": (b"", _NEVER_NEXT),
}
"""Subjects that newer versions of nats-server.conf grant to workers, with bodies and headers that do nothing."""
_OF_DATA = f"OBJ_{names.DATA_BUCKET}"
JETSTREAM = ("$JS.API.INFO", f"$JS.API.STREAM.INFO.{_OF_DATA}", f"$JS.API.DIRECT.GET.{_OF_DATA}.doctor")
"""Subjects of JetStream that change nothing; older versions of nats-server.conf granted some of them to clients."""
_ADVICE = "bring it up to date: docs/security.md, Upgrading"
SERVED = (names.EMBED, names.EMBED_BATCH, names.SIMILARITY, f"{names.CANCEL}.*", f"$SRV.PING.{names.SERVICE}")
ANSWER_TIMEOUT_S = 10.0
STORE_TIMEOUT_S = 2.0
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(config: Config = None, as_json: Json = False, nats_url: NatsUrl = None, timeout: Timeout = 30.0) -> None:
    """Check this machine, the NATS server and the workers, and say what to do. Exit code 1 when something fails."""
    settings, findings = _settings(config, nats_url)
    findings += _look(settings, timeout)
    failed = any(finding.status == "fail" for finding in findings)
    if as_json:
        print_json({"ok": not failed, "findings": [asdict(finding) for finding in findings]})
    else:
        _show(findings)
    raise typer.Exit(int(failed))


def _settings(config: Path | None, nats_url: str | None) -> tuple[Settings, list[Finding]]:
    """The settings in force; if they cannot be read, the defaults and a finding that says so."""
    try:
        return read_settings(config, nats_url=nats_url), []
    except BadSettings as error:
        advice = "correct it; what follows was looked at with the defaults"
        return Settings.model_construct(nats_url=nats_url), [Finding("settings", "fail", str(error), advice)]


def _look(settings: Settings, timeout_s: float) -> list[Finding]:
    checks = {
        "Python": doctor_machine.python,
        "the libraries": doctor_machine.libraries,
        "torch and the device": doctor_machine.device,
        "who else computes here": doctor_machine.load,
        "nats-server": doctor_machine.nats_server,
        "the ports": doctor_machine.ports,
        "NATS and its workers": lambda settings: asyncio.run(check_nats(settings, min(timeout_s, ANSWER_TIMEOUT_S))),
        "the models": doctor_machine.models,
        "the data directory": doctor_machine.data_dir,
    }
    findings: list[Finding] = []
    with spinner() as progress:
        task = progress.add_task("")
        for what, check in checks.items():
            progress.reset(task, description=f"looking at {what}")
            findings += check(settings)
    return findings


def _show(findings: Sequence[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        line = Text.assemble((f"{finding.status:<5}", _COLOURS[finding.status]), f"{finding.check:<{width}}  ")
        out.print(line.append(finding.found))
        if finding.advice:
            out.print(Text(f"{'':{width + 7}}-> {finding.advice}"))


async def check_nats(settings: Settings, timeout_s: float) -> list[Finding]:
    """Connect, request a vector as a client, and check whether a worker could serve with these credentials."""
    reached: list[Finding] = []
    try:
        asking = Connection(settings.nats_url, timeout_s).settings()
        try:
            async with permitted(asking) as nc:
                reached.append(_reached(nc, asking))
                workers = await _workers(nc, asking, settings, timeout_s)
            refused, workers = None, [*await old_permissions(asking), *workers]
        except MayNotAsk as error:
            refused, workers = error, [Finding("worker", "warn", "not asked", "connect as a client to ask it")]
        denied, stored = await _as_a_worker(settings)
        server = await _server(asking, settings)
        return [*reached, *server, _permissions(asking, refused, denied), *stored, *workers]
    except BusError as error:
        return [*reached, _unreached(settings, error)]


def _reached(nc: Client, asking: NatsSettings) -> Finding:
    context = f", context {asking.context}" if asking.context else ""
    server = nc.connected_server_version
    number = f"{server.major}.{server.minor}.{server.patch}"
    return Finding("NATS", "ok", f"nats-server {number} at {asking.url} as {asking.identity}{context}")


def _unreached(settings: Settings, error: BusError) -> Finding:
    """A missing server is a failure only if one was named: `serve --embedded-nats` needs none."""
    named = settings.nats_url or os.environ.get("NATS_URL") or os.environ.get("NATS_CONTEXT")
    if isinstance(error, Unreachable) and not named:
        return Finding("NATS", "warn", f"no server at {error.url}", "run mlbus serve --embedded-nats, or set NATS_URL")
    found, _, advice = str(error).partition("): ")
    return Finding("NATS", "fail", found + ")" * bool(advice), advice or "correct it")


async def _server(client: NatsSettings, settings: Settings) -> list[Finding]:
    """The server's state as the system account sees it; nothing without that account's password.

    The password in the data directory is sent only to the server that runs from it.
    """
    ours = announced_url(settings.data_dir) == client.url
    try:
        secret = password("system", settings.data_dir / FILE_NAME if ours else None, os.environ)
        system = NatsSettings.of_user(os.environ, "system", secret, client.url)
        async with connected(system) as nc:
            answer = await nc.request("$SYS.REQ.SERVER.PING.VARZ", timeout=STORE_TIMEOUT_S)
    except (BusError, *TROUBLE):
        return []
    state = json.loads(answer.data)["data"]
    if port := state.get("http_port") or state.get("https_port"):
        open_to = f"its monitoring answers on {state['http_host']}:{port}, which asks for no password"
        return [Finding("server", "warn", open_to, "take http out of its configuration; no --monitor, no -m")]
    found = f"up {state['uptime']}, {state['connections']} connections, {state['slow_consumers']} cut off as too slow"
    if "config" in (jetstream := state["jetstream"]):
        stored, room = jetstream["stats"]["storage"], jetstream["config"]["max_storage"]
        found += f"; JetStream keeps {stored / 2**30:.1f} of {room / 2**30:.0f} GiB"
    return [Finding("server", "ok", found)]


async def _workers(nc: Client, asking: NatsSettings, settings: Settings, timeout_s: float) -> list[Finding]:
    answered = ReplySubjects(settings.reply_prefixes).allow(f"{asking.inbox_prefix}.x")
    if not answered and asking.inbox_prefix != JETSTREAM_INBOX:  # a worker may not ask anyway, and is told so
        found = f"workers answer nothing below {asking.inbox_prefix}, the inbox prefix of {asking.identity}"
        named = f"{inbox_prefix(asking.user)} is that of" if asking.user else "take one of"
        advice = f"{named} the present nats-server.conf: bring a copy up to date, then mlbus admin context writes it"
        return [Finding("worker", "fail", found, advice)]
    return [await _worker(nc, timeout_s), *await _missing(nc, timeout_s)]


async def _worker(nc: Client, timeout_s: float) -> Finding:
    started = time.perf_counter()
    try:
        reply = await MLClient(nc, timeout_s=timeout_s, retries=0).embed("mlbus doctor")
    except Unavailable as error:
        return Finding("worker", "warn", str(error).partition(";")[0], "start one with mlbus serve")
    except MLError as error:
        return Finding("worker", "fail", f"{error.code}: {error}", "look into the worker's log")
    ms = (time.perf_counter() - started) * 1000
    return Finding("worker", "ok", f"embeds with {reply.model} {reply.version}, answered in {ms:.0f} ms")


async def _missing(nc: Client, timeout_s: float) -> list[Finding]:
    """The models that workers should serve and cannot."""
    return [
        Finding(f"worker {answer.body['id']}", "warn", f"it serves without {name[8:]}: {reason}", "see the message")
        for answer in await ask_workers(nc, "INFO", timeout_s, STALL_S)
        for name, reason in answer.body["metadata"].items()
        if name.startswith("missing.")
    ]


async def _as_a_worker(settings: Settings) -> tuple[list[Denied], list[Finding]]:
    """What the server would refuse a worker with these credentials, and whether JetStream takes writes.

    The subscriptions last an instant and take nothing away: without the queue group each one gets a copy.
    """
    refused: list[Denied] = []
    serving = nats_settings(settings)
    async with connected(serving, on_denied=refused.append) as nc:
        for subject in (*SERVED, nc.new_inbox()):
            await nc.subscribe(subject)
        await settled(nc)
        if refused:
            return list(refused), []
        stored = [*await _storage(nc), *await old_storage(nc, STORE_TIMEOUT_S)]
        return [], [*await old_grants(nc, serving.identity, refused), *stored]


async def _storage(nc: Client) -> list[Finding]:
    """Whether JetStream takes a write, of a key that expires; nothing if our bucket does not exist."""
    try:
        await nc.jetstream(timeout=STORE_TIMEOUT_S).publish(f"$KV.{names.JOBS_BUCKET}.doctor", msg_ttl=60)
    except NotStored as error:
        return [Finding("JetStream", "fail", *str(error).split(": ", 1))]
    except TROUBLE:
        return []
    return [Finding("JetStream", "ok", "takes writes")]


def _permissions(asking: NatsSettings, to_ask: MayNotAsk | None, to_serve: list[Denied]) -> Finding:
    who = asking.identity
    if to_ask is None and not to_serve:
        return Finding("permissions", "ok", f"{who} may ask and serve")
    if to_ask is None:
        return Finding("permissions", "ok", f"{who} may ask; to serve takes a worker's credentials")
    if not to_serve:
        return Finding("permissions", "ok", f"{who} may serve; to ask takes a client's credentials")
    found, _, advice = str(to_ask).partition(": ")
    return Finding("permissions", "fail", f"{found}, nor subscribe to {to_serve[0].subject}", advice)


async def old_permissions(asking: NatsSettings) -> list[Finding]:
    """Permissions of an older nats-server.conf, which refuses subjects to clients or grants too many.

    Raises BusError.
    """
    refused: list[Denied] = []
    async with connected(asking, on_denied=refused.append) as nc:
        own = nc.new_inbox()  # a client may not publish there, an administrator may
        bodies = {**GRANTED_SINCE, **dict.fromkeys(JETSTREAM, b"")}
        for subject, body in bodies.items():
            await nc.publish(subject, body, reply=own)
        await nc.publish(own)
        await settled(nc)
    denied = {each.subject for each in refused}
    findings = []
    if missing := [subject for subject in GRANTED_SINCE if subject.lower() in denied]:
        found = f"it is for an older mlbus: {asking.identity} may not ask {', '.join(missing)}"
        findings.append(Finding("nats-server.conf", "warn", found, _ADVICE))
    granted = [subject for subject in JETSTREAM if subject.lower() not in denied]
    if granted and own.lower() in denied:
        found = f"{asking.identity} may ask {granted[0]}, and so have the server publish on any subject"
        findings.append(Finding("nats-server.conf", "fail", found, f"take JetStream out of its permissions; {_ADVICE}"))
    return findings


async def old_grants(nc: Client, identity: str, refused: list[Denied]) -> list[Finding]:
    """Subjects that an older nats-server.conf refuses to a worker. refused: collects what the server refuses to nc."""
    for subject, (body, headers) in SENT_SINCE.items():
        await nc.publish(subject, body, headers=headers)
    await settled(nc)
    denied = {each.subject for each in refused}
    if missing := [subject for subject in SENT_SINCE if subject.lower() in denied]:
        found = f"it is for an older mlbus: as a worker {identity} may not publish {', '.join(missing)}"
        return [Finding("nats-server.conf", "warn", found, _ADVICE)]
    return []


async def old_storage(nc: Client, timeout_s: float) -> list[Finding]:
    """Streams and buckets that an older version made; nothing if there are none. timeout_s: for each request."""
    try:
        old = await setup.outdated(nc, timeout_s)
    except (NotSetUp, *TROUBLE):
        return []
    if len(old) > len(setup.STORAGE):  # all of them: nobody has set up fine-tuning
        return []
    return [Finding("JetStream", "warn", what, "run `mlbus admin init` as the administrator") for what in old]
