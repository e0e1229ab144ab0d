"""What `mlbus doctor` finds on a NATS server that was set up for an older mlbus: its permissions and its streams."""

from collections.abc import Mapping

from nats.aio.client import Client
from nats.js.api import Header

from subjects import names

from ..bus.causes import Denied
from ..bus.connection import connected, settled
from ..bus.settings import NatsSettings
from ..jobs import setup
from ..jobs.bucket import NotSetUp
from ..jobs.retry import TROUBLE
from .doctor_machine import Finding

ASKED_SINCE: Mapping[str, bytes] = {
    names.SCHEMA: names.EMBED.encode(),
    names.JOBS_WATCH: b"none",
    names.FINETUNE_UPLOAD: b"{}",
}
"""What clients may ask since the first nats-server.conf, with a body that does nothing."""
_NEVER_NEXT = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(2**63 - 1)}
SENT_SINCE: Mapping[str, tuple[bytes, dict[str, str] | None]] = {
    f"$SRV.PING.{names.SERVICE}.doctor": (b"", None),
    f"$JS.API.STREAM.PURGE.{names.JOBS_STREAM}": (b'{"filter":"ml.queue.doctor"}', None),
    f"$O.{names.DATA_BUCKET}.C.doctor": (b"", _NEVER_NEXT),
    f"$O.{names.DATA_BUCKET}.M.doctor": (b"", _NEVER_NEXT),
}
"""What workers may publish since the first nats-server.conf, with a body and headers that do nothing."""
_OF_DATA = f"OBJ_{names.DATA_BUCKET}"
JETSTREAM = ("$JS.API.INFO", f"$JS.API.STREAM.INFO.{_OF_DATA}", f"$JS.API.DIRECT.GET.{_OF_DATA}.doctor")
"""What tells of JetStream and changes nothing; clients of older files could ask some of it."""
_ADVICE = "bring it up to date: docs/security.md, Upgrading"


async def old_permissions(asking: NatsSettings) -> list[Finding]:
    """What the server does not let somebody ask who may ask for vectors, or lets a client ask. Raises BusError."""
    refused: list[Denied] = []
    async with connected(asking, on_denied=refused.append) as nc:
        own = nc.new_inbox()  # a client may not publish there, an administrator may
        asked = {**ASKED_SINCE, **dict.fromkeys(JETSTREAM, b"")}
        for subject, body in asked.items():
            await nc.publish(subject, body, reply=own)
        await nc.publish(own)
        await settled(nc)
    denied = {each.subject for each in refused}
    findings = []
    if missing := [subject for subject in ASKED_SINCE if subject.lower() in denied]:
        found = f"it is for an older mlbus: {asking.identity} may not ask {', '.join(missing)}"
        findings.append(Finding("nats-server.conf", "warn", found, _ADVICE))
    granted = [subject for subject in JETSTREAM if subject.lower() not in denied]
    if granted and own.lower() in denied:
        found = f"{asking.identity} may ask {granted[0]}, and so have the server publish on any subject"
        findings.append(Finding("nats-server.conf", "fail", found, f"take JetStream out of its permissions; {_ADVICE}"))
    return findings


async def old_grants(nc: Client, identity: str, refused: list[Denied]) -> list[Finding]:
    """What the server does not let a worker publish. refused: where the connection notes what the server refuses."""
    for subject, (body, headers) in SENT_SINCE.items():
        await nc.publish(subject, body, headers=headers)
    await settled(nc)
    denied = {each.subject for each in refused}
    if missing := [subject for subject in SENT_SINCE if subject.lower() in denied]:
        found = f"it is for an older mlbus: as a worker {identity} may not publish {', '.join(missing)}"
        return [Finding("nats-server.conf", "warn", found, _ADVICE)]
    return []


async def old_storage(nc: Client, timeout_s: float) -> list[Finding]:
    """Streams and buckets that another version made; nothing where there are none. timeout_s: for each request."""
    try:
        old = await setup.outdated(nc, timeout_s)
    except (NotSetUp, *TROUBLE):
        return []
    if len(old) > len(setup.STORAGE):  # all of them: nobody has set up fine-tuning
        return []
    return [Finding("JetStream", "warn", what, "run `mlbus admin init` as the administrator") for what in old]
