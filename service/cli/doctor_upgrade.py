"""What `mlbus doctor` finds on a NATS server that was set up for an older mlbus: its permissions and its streams."""

from collections.abc import Mapping

from nats.aio.client import Client

from subjects import names

from ..bus.causes import Denied
from ..bus.connection import connected, settled
from ..bus.settings import NatsSettings
from ..jobs import streams
from ..jobs.patience import TROUBLE
from ..jobs.store import NotSetUp
from .doctor_machine import Finding

ASKED_SINCE: Mapping[str, bytes] = {names.SCHEMA: names.EMBED.encode(), names.JOBS_WATCH: b"none"}
"""What clients may ask since the first nats-server.conf, with a body that does nothing."""


async def old_permissions(asking: NatsSettings) -> list[Finding]:
    """What the server does not let somebody ask who may ask for vectors. Raises BusError."""
    refused: list[Denied] = []
    async with connected(asking, on_denied=refused.append) as nc:
        for subject, body in ASKED_SINCE.items():
            await nc.publish(subject, body, reply=nc.new_inbox())
        await settled(nc)
    if not refused:
        return []
    subjects = ", ".join(denied.subject for denied in refused)
    found = f"it is for an older mlbus: {asking.identity} may not ask {subjects}"
    return [Finding("nats-server.conf", "warn", found, "bring it up to date: docs/security.md, Upgrading")]


async def old_storage(nc: Client, timeout_s: float) -> list[Finding]:
    """Streams and buckets that another version made; nothing where there are none. timeout_s: for each request."""
    try:
        old = await streams.outdated(nc, timeout_s)
    except (NotSetUp, *TROUBLE):
        return []
    if len(old) > len(streams.STORAGE):  # all of them: nobody has set up fine-tuning
        return []
    return [Finding("JetStream", "warn", what, "run `mlbus admin init` as the administrator") for what in old]
