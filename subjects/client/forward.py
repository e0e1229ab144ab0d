"""`MLClient`'s requests on behalf of others: bodies and headers pass as they are, as through a gateway."""

from collections.abc import AsyncGenerator, Mapping

from nats.aio.msg import Msg

from ..routes import Route
from ..stream import Frame
from .attempts import Attempts, Silence
from .transport import Transport

SILENCE_S = 15.0
"""The longest silence of a lasting stream, whose workers send pings."""


class ForwardCalls:
    """Any request of the contract, unread. headers: of the request; they win over the client's own.

    timeout_s: for the whole call; there are no retries. Raises the worker's error.
    """

    _transport: Transport

    async def forward(self, route: Route, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Msg:
        """The one reply: its body, and its headers."""
        return await self._transport.forward(route.subject, body, headers, timeout_s)

    def forward_stream(
        self, route: Route, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> AsyncGenerator[Frame, None]:
        """The frames of a reply that may be a stream; where it is none, one frame of the event REPLY.

        The header Ml-Stream or the body says what is wanted. Closing the iterator early cancels the work.
        """
        time = Silence(timeout_s, SILENCE_S) if route.lasting else Attempts(timeout_s, retries=0)
        return self._transport.forward_stream(route.subject, body, headers, time)
