"""A gateway for the tests: a process, as it is started, and a client that says exactly what a test wants said."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from workers import clean_environment

MLBUS = "from service.cli import main; main()"


@dataclass
class Gateway:
    """A process. log: its lines, which `until` waits for."""

    process: Process
    log: list[dict[str, Any]] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    told: bool = False

    async def read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self.changed:
                self.log.append(json.loads(line) if line.startswith(b"{") else {"event": line.decode()})
                self.changed.notify_all()

    async def until(self, event: str) -> dict[str, Any]:
        """The first line of that event."""

        def found() -> dict[str, Any] | None:
            return next((line for line in self.log if line["event"] == event), None)

        async with asyncio.timeout(30), self.changed:
            await self.changed.wait_for(found)
        line = found()
        assert line is not None
        return line

    @property
    def url(self) -> str:
        return str(next(line["url"] for line in self.log if line["event"] == "gateway.listening"))

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host, int(port)

    def tell_to_end(self) -> None:
        """Once: a second signal would end it at once."""
        if not self.told:
            self.told = True
            with suppress(ProcessLookupError):
                self.process.terminate()

    async def stop(self) -> int:
        """Its exit code."""
        self.tell_to_end()
        return await asyncio.wait_for(self.process.wait(), 30)


@asynccontextmanager
async def started_gateway(nats_url: str, **variables: str) -> AsyncIterator[Gateway]:
    """`mlbus gateway` on a free port, which listens; it may not be connected yet."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", MLBUS, "gateway", "--listen", "127.0.0.1:0", "--nats-url", nats_url),
        env=clean_environment(**variables),
        stderr=PIPE,
    )
    gateway = Gateway(process)
    reading = asyncio.create_task(gateway.read())
    try:
        await gateway.until("gateway.listening")
        yield gateway
    finally:
        await gateway.stop()
        await reading


@asynccontextmanager
async def running_gateway(nats_url: str, **variables: str) -> AsyncIterator[Gateway]:
    """The same, connected."""
    async with started_gateway(nats_url, **variables) as gateway:
        await gateway.until("bus.connected")
        yield gateway


@dataclass(frozen=True)
class Answer:
    """A whole answer, its headers' names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        return self.json["error"]  # type: ignore[no-any-return]

    @property
    def events(self) -> list[tuple[str, str, Any]]:
        """Of a stream: each event's name, id and data, which is JSON unless it is `[DONE]`."""
        found = []
        for block in self.body.decode().split("\n\n")[:-1]:
            fields = dict(line.split(": ", 1) for line in block.split("\n"))
            data = fields["data"]
            found.append(
                (fields.get("event", ""), fields.get("id", ""), data if data == "[DONE]" else json.loads(data))
            )
        return found


class Connection:
    """A connection that sends bytes as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """The status and the headers of the next answer."""
        async with asyncio.timeout(30):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        return int(lines[0].split()[1]), {
            name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])
        }

    async def chunk(self) -> bytes:
        """The next chunk of a chunked answer; empty: the last one."""
        async with asyncio.timeout(30):
            size = int(await self.reader.readline(), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def answer(self) -> Answer:
        status, headers = await self.head()
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while chunk := await self.chunk():
                body += chunk
        elif size := int(headers.get("content-length", 0)):
            async with asyncio.timeout(30):
                body = await self.reader.readexactly(size)
        return Answer(status, headers, body)

    async def closed(self) -> bool:
        """Whether the other side ends the connection without another byte."""
        async with asyncio.timeout(30):
            return await self.reader.read(1) == b""


@asynccontextmanager
async def connection(gateway: Gateway, **options: Any) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection(*gateway.address, limit=2**26, **options)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request as bytes; in headers' names `_` stands for `-`. JSON and `Host: localhost` unless said otherwise."""
    sent = {"host": "localhost", "content-type": "application/json", "content-length": str(len(body))}
    sent |= {name.replace("_", "-").lower(): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items() if value), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


async def ask(gateway: Gateway, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """One request on a connection of its own. body: bytes, or what becomes JSON."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    async with connection(gateway) as made:
        await made.send(request(method, path, data, **headers))
        return await made.answer()


async def post(gateway: Gateway, path: str, body: Any, **headers: str) -> Answer:
    return await ask(gateway, "POST", path, body, **headers)
