"""nats-py's JetStream, which distinguishes a server that stores nothing from one that is down."""

from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import PubAck


class NotStored(TimeoutError):
    """JetStream answers but confirms no write: after one failed, nats-server stores nothing until a restart."""

    def __init__(self) -> None:
        super().__init__("it takes no writes: where its disk was full, free some and restart nats-server")


class JetStream(JetStreamContext):
    """Buckets opened with it write through it too."""

    async def publish(self, *message: Any, **fields: Any) -> PubAck:
        """Raises NotStored if JetStream answers but does not confirm, else what nats-py raises."""
        connection = self._nc.stats["reconnects"]
        try:
            return await super().publish(*message, **fields)
        except TimeoutError:
            await self.account_info()
            if self._nc.stats["reconnects"] != connection:
                raise
            raise NotStored from None


def api_subject(nc: Client, request: str) -> str:
    """The subject of a JetStream request that nats-py does not make, such as `STREAM.INFO.ML_JOBS`, in nc's domain."""
    return f"{nc.jetstream()._prefix}.{request}"
