"""The gateway's connection to NATS, which it waits for and keeps."""

import asyncio
from contextlib import suppress

import structlog
from nats.errors import Error as NatsError

from subjects.client import MLClient
from subjects.client.attempts import Pauses
from subjects.errors import Unavailable

from ..bus.client import BusClient
from ..bus.connection import connected
from ..bus.errors import Unreachable
from ..bus.settings import NatsSettings
from ..runtime.stop import Stop

log = structlog.get_logger(__name__)

FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 10.0
PENDING_BYTES = 16 * 2**20
"""Of one stream that may wait for its reader: two of the largest messages."""
PING_S = 2.0


class Bus:
    """The client behind every request. Run it in a task, `run`, until the gateway stops."""

    def __init__(self, nats: NatsSettings, timeout_s: float) -> None:
        self._nats = nats
        self._timeout_s = timeout_s
        self._nc: BusClient | None = None
        self._ml: MLClient | None = None

    @property
    def ml(self) -> MLClient:
        """Raises Unavailable while there is no connection."""
        if self._ml is None or self._nc is None or not self._nc.is_connected:
            raise Unavailable(f"this gateway has no connection to NATS at {self._nats.url}", retry_after_ms=1000)
        return self._ml

    async def run(self, stop: Stop, closing: asyncio.Event) -> None:
        """Connect, however long that takes, and keep the connection until `closing`.

        stop: told of the errors that waiting does not mend, such as refused credentials.
        """
        pauses = Pauses(FIRST_PAUSE_S, MAX_PAUSE_S)
        while not closing.is_set():
            try:
                async with connected(self._nats, on_closed=stop.fail) as nc:
                    self._nc = nc
                    ml = MLClient(nc, timeout_s=self._timeout_s, retries=0, pending_bytes=PENDING_BYTES)
                    async with ml as self._ml:
                        await closing.wait()
            except Unreachable as error:
                pause_s = pauses.after(Unavailable(str(error)))
                log.warning("bus.unreachable", reason=str(error), again_in_s=round(pause_s, 1))
                with suppress(TimeoutError):
                    await asyncio.wait_for(closing.wait(), pause_s)
            except Exception as error:  # nothing that waiting would mend
                stop.fail(error)
                return

    async def fault(self) -> str | None:
        """Why no request would be answered now; None if a worker answers."""
        try:
            _ = self.ml
            assert self._nc is not None
            await self._nc.request("$SRV.PING.ml", timeout=PING_S)
        except Unavailable as error:
            return error.message
        except (NatsError, OSError):
            return "no worker answers"
        return None
