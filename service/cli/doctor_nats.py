"""What `mlbus doctor` asks of NATS: whether a server is there, what it lets us do, and whether a worker answers."""

import asyncio
import json
import os
import time
from collections.abc import Iterator

from nats.aio.client import Client

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
from ..config import Settings
from ..endpoint.reply_subject import JETSTREAM_INBOX, ReplySubjects
from ..jobs.retry import TROUBLE
from .ask import STALL_S, Connection, MayNotAsk, permitted
from .doctor_machine import Finding
from .doctor_upgrade import old_grants, old_permissions, old_storage

SERVED = (names.EMBED, names.EMBED_BATCH, names.SIMILARITY, f"{names.CANCEL}.*", f"$SRV.PING.{names.SERVICE}")
ANSWER_TIMEOUT_S = 10.0
STORE_TIMEOUT_S = 2.0


def nats(settings: Settings, timeout_s: float) -> Iterator[Finding]:
    """Connect, ask for a vector as a client would, and see whether a worker could serve."""
    yield from asyncio.run(_findings(settings, min(timeout_s, ANSWER_TIMEOUT_S)))


async def _findings(settings: Settings, timeout_s: float) -> list[Finding]:
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
    """No server is a fault only where one was named: `serve --embedded-nats` needs none."""
    named = settings.nats_url or os.environ.get("NATS_URL") or os.environ.get("NATS_CONTEXT")
    if isinstance(error, Unreachable) and not named:
        return Finding("NATS", "warn", f"no server at {error.url}", "run mlbus serve --embedded-nats, or set NATS_URL")
    found, _, advice = str(error).partition("): ")
    return Finding("NATS", "fail", found + ")" * bool(advice), advice or "correct it")


async def _server(asked: NatsSettings, settings: Settings) -> list[Finding]:
    """What the server tells the system account; nothing where it is not ours to look after.

    The password in the data directory is shown to the server that runs out of it, and to no other.
    """
    ours = announced_url(settings.data_dir) == asked.url
    try:
        secret = password("system", settings.data_dir / FILE_NAME if ours else None, os.environ)
        asking = NatsSettings.of_user(os.environ, "system", secret, asked.url)
        async with connected(asking) as nc:
            answer = await nc.request("$SYS.REQ.SERVER.PING.VARZ", timeout=STORE_TIMEOUT_S)
    except (BusError, *TROUBLE):
        return []
    told = json.loads(answer.data)["data"]
    if port := told.get("http_port") or told.get("https_port"):
        open_to = f"its monitoring answers on {told['http_host']}:{port}, which asks for no password"
        return [Finding("server", "warn", open_to, "take http out of its configuration; no --monitor, no -m")]
    found = f"up {told['uptime']}, {told['connections']} connections, {told['slow_consumers']} cut off as too slow"
    if "config" in (jetstream := told["jetstream"]):
        stored, room = jetstream["stats"]["storage"], jetstream["config"]["max_storage"]
        found += f"; JetStream keeps {stored / 2**30:.1f} of {room / 2**30:.0f} GiB"
    return [Finding("server", "ok", found)]


async def _workers(nc: Client, asking: NatsSettings, settings: Settings, timeout_s: float) -> list[Finding]:
    answered = ReplySubjects(settings.reply_prefixes).allow(f"{asking.inbox_prefix}.x")
    if not answered and asking.inbox_prefix != JETSTREAM_INBOX:  # a worker may not ask anyway, and hears that
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
    """The models that workers were told to serve and cannot."""
    return [
        Finding(f"worker {answer.body['id']}", "warn", f"it serves without {name[8:]}: {reason}", "see the message")
        for answer in await ask_workers(nc, "INFO", timeout_s, STALL_S)
        for name, reason in answer.body["metadata"].items()
        if name.startswith("missing.")
    ]


async def _as_a_worker(settings: Settings) -> tuple[list[Denied], list[Finding]]:
    """What the server would refuse a worker with these credentials, and whether it stores what one writes.

    Subscribed for an instant, and nothing taken: without the queue group each subscription gets a copy.
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
    """Whether JetStream takes a write, of a key that goes by itself; nothing where it has no bucket of ours."""
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
