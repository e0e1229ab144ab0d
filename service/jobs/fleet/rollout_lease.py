"""The lease that makes roll-outs of one model exclusive in a fleet: the key `rollout.<model>` of the bucket ml_jobs.

The key expires after LEASE_S if its worker dies.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from nats.aio.client import Client
from nats.js.api import Header
from nats.js.errors import APIError, KeyNotFoundError
from nats.js.kv import KeyValue

from ...runtime.background import background_task
from ..bucket import SUBJECT, jobs_bucket
from ..retry import OVERTAKEN, TROUBLE, retry_while_down

log = structlog.get_logger(__name__)

LEASE_S, RENEW_S = 15.0, 5.0
POLL_S = 0.5
RELEASE_S = 5.0
_AFTER = Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value


@asynccontextmanager
async def rolling_out(nc: Client, model: str, job: str | None) -> AsyncIterator[None]:
    """Inside, no other worker rolls out a version of the model; entering waits for that.

    job: a worker that continues a job takes over the lease of the worker that had the job before. Raises NotSetUp.
    """
    bucket = await retry_while_down(lambda: jobs_bucket(nc))
    lease = _Lease(nc, bucket, f"rollout.{model}", job or secrets.token_hex(16))
    await retry_while_down(lease.take)
    async with background_task(lease.renew, f"rollout.{model}"):
        try:
            yield
        finally:
            await lease.release()


class _Lease:
    """A key whose value is the holder's name and a random part, which distinguishes leases of one holder."""

    def __init__(self, nc: Client, bucket: KeyValue, key: str, holder: str) -> None:
        self._nc = nc
        self._bucket = bucket
        self._key = key
        self._holder = f"{holder}.".encode()
        self._own = self._holder + secrets.token_hex(16).encode()

    async def take(self) -> None:
        while True:
            value, revision = await self._stored()
            free = not value or value.startswith(self._holder)
            if free and await self._put(revision):
                return
            await asyncio.sleep(POLL_S)

    async def renew(self, closing: asyncio.Event) -> None:
        """Renew it while it is ours."""
        while not closing.is_set():
            await asyncio.sleep(RENEW_S)
            try:
                value, revision = await self._stored()
                if value != self._own:
                    log.warning("rollout.lease_lost", key=self._key)
                    return
                await self._put(revision)
            except TROUBLE as error:
                log.debug("rollout.lease_not_renewed", key=self._key, error=repr(error))

    async def release(self) -> None:
        """Free the lease at once if the server can be reached; else it expires."""
        with suppress(APIError, *TROUBLE):
            async with asyncio.timeout(RELEASE_S):
                value, revision = await self._stored()
                if value == self._own:
                    await self._bucket.delete(self._key, last=revision)

    async def _stored(self) -> tuple[bytes, int]:
        """The key's value, empty if there is none, and its revision."""
        try:
            entry = await self._bucket.get(self._key)
        except KeyNotFoundError as error:
            return b"", error.entry.revision if error.entry else 0
        return entry.value or b"", entry.revision or 0

    async def _put(self, revision: int) -> bool:
        """Write it with a TTL of LEASE_S -> whether nobody was faster. nats-py's `update` takes no TTL."""
        subject, headers = f"{SUBJECT}{self._key}", {_AFTER: str(revision)}
        try:
            await self._nc.jetstream().publish(subject, self._own, headers=headers, msg_ttl=LEASE_S)
        except APIError as error:
            if error.err_code in OVERTAKEN:
                return False
            raise
        return True
