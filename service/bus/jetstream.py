"""nats-py's JetStream, which tells a server that takes no writes any more from one that is away."""

from typing import Any

from nats.js import JetStreamContext
from nats.js.api import PubAck


class NotStored(TimeoutError):
    """JetStream answers, and confirmed no write: once one failed, nats-server takes none for as long as it runs."""

    def __init__(self) -> None:
        super().__init__("it takes no writes: where its disk was full, free some and restart nats-server")


class JetStream(JetStreamContext):
    """Buckets that are opened with it write through it too."""

    async def publish(self, *message: Any, **fields: Any) -> PubAck:
        """Raises NotStored where JetStream does not confirm it and is there, and else what it raises anyway."""
        connection = self._nc.stats["reconnects"]
        try:
            return await super().publish(*message, **fields)
        except TimeoutError:
            await self.account_info()
            if self._nc.stats["reconnects"] != connection:
                raise
            raise NotStored from None
