"""A way to a nats-server that a test can cut, and hold: a TCP relay between one client and the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from nats_server import NatsServer


class Relay:
    """url: what to connect to. open: whether new connections get through."""

    def __init__(self, server: NatsServer) -> None:
        self._server = server
        self._writers: set[asyncio.StreamWriter] = set()
        self._clients: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None
        self.open = asyncio.Event()
        self.open.set()
        self._passing = True
        self._reading = asyncio.Event()
        self._reading.set()
        self._lost = b""
        self._came = asyncio.Condition()

    @property
    def address(self) -> str:
        assert self._listener is not None
        host, port = self._listener.sockets[0].getsockname()[:2]
        return f"{host}:{port}"

    def swallow(self) -> None:
        """Let nothing more through to the server, and have the client believe that it does, until the next `cut`."""
        self._passing = False

    def stall(self) -> None:
        """Read no more of what the client sends, and have it think that this is only slow, until the next `cut`."""
        self._reading.clear()

    def say(self, line: bytes) -> None:
        """Have the clients read something that the server did not say."""
        for writer in self._clients:
            writer.write(line)

    async def swallowed(self, text: bytes) -> None:
        """Return once that was among what did not get through."""
        async with asyncio.timeout(20), self._came:
            await self._came.wait_for(lambda: text in self._lost)

    def cut(self) -> None:
        """Break every connection. New ones wait while `open` is cleared."""
        for writer in self._writers:
            writer.transport.abort()
        self._passing = True
        self._reading.set()

    async def listen(self) -> None:
        self._listener = await asyncio.start_server(self._join, "127.0.0.1", 0)

    async def close(self) -> None:
        assert self._listener is not None
        self.open.set()
        self._listener.close()
        self.cut()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._clients.add(writer)
        await self.open.wait()
        with suppress(OSError):
            host, _, port = self._server.address.rpartition(":")
            from_server, to_server = await asyncio.open_connection(host, int(port))
            self._writers.add(to_server)
            await asyncio.gather(self._pass(reader, to_server, True), self._pass(from_server, writer, False))
            self._writers.discard(to_server)
        self._writers.discard(writer)
        self._clients.discard(writer)

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, upwards: bool) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if upwards:
                    await self._reading.wait()
                if self._passing or not upwards:
                    target.write(data)
                    await target.drain()
                    continue
                async with self._came:
                    self._lost += data
                    self._came.notify_all()
        target.close()


@asynccontextmanager
async def cuttable(server: NatsServer) -> AsyncIterator[Relay]:
    """A relay to the server for as long as the context lasts."""
    relay = Relay(server)
    await relay.listen()
    try:
        yield relay
    finally:
        await relay.close()
