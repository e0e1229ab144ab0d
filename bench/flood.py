"""Requests at a fixed rate, whether or not they are answered: `python -m bench.flood HOST:PORT`, a JSON plan on stdin.

Speaks the protocol of NATS with nothing between it and the socket: a client library would take the core that it
floods. Prints a JSON object with what came of each kind of answer.
"""

import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field

_MESSAGE = re.compile(rb"H?MSG _INBOX\.flood\.(\d+) 1 (?:(\d+) )?(\d+)\r\n")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send: bodies in turn, so many a second for so long; each is to be answered within deadline_s.

    Before that as much is sent for one deadline more: a worker that had nothing to do fills up meanwhile.
    """

    subject: str
    rate: float
    seconds: float
    deadline_s: float
    bodies: list[str]


@dataclass(slots=True)
class Outcome:
    """in_time, late, refused: seconds from a request to its answer; failed: codes of other answers.

    in_time_s: those in time while the worker was full, a second.
    """

    sent: int = 0
    in_time_s: float = 0.0
    in_time: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Flood:
    """One connection that sends and one that counts, which is the same."""

    def __init__(self, plan: Plan) -> None:
        self.outcome = Outcome()
        self._plan = plan
        self._sent_at: dict[int, float] = {}
        self._unread = b""

    async def run(self, host: str, port: int) -> Outcome:
        """Send all, then wait until what was sent last is answered or late."""
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(
            b'CONNECT {"verbose":false,"headers":true,"no_responders":true}\r\nSUB _INBOX.flood.* 1\r\nPING\r\n'
        )
        reading = asyncio.create_task(self._read(reader, writer))
        await self._send(writer)
        await asyncio.sleep(self._plan.deadline_s + 1)
        reading.cancel()
        writer.close()
        return self.outcome

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        plan, subject = self._plan, self._plan.subject.encode()
        headers = f"NATS/1.0\r\nMl-Timeout-Ms: {1000 * plan.deadline_s:.0f}\r\n\r\n".encode()
        messages = [
            b"%d %d\r\n%s%s\r\n" % (len(headers), len(headers) + len(body), headers, body)
            for body in (text.encode() for text in plan.bodies)
        ]
        began = time.monotonic()
        full, before = began + plan.deadline_s, 0
        while (now := time.monotonic()) < full + plan.seconds:
            if now < full:
                before = len(self.outcome.in_time)
            due = range(self.outcome.sent, int((now - began) * plan.rate))
            for number in due:
                self._sent_at[number] = now
                writer.write(b"HPUB %s _INBOX.flood.%d " % (subject, number) + messages[number % len(messages)])
            self.outcome.sent += len(due)
            await writer.drain()
            await asyncio.sleep(0.002)
        self.outcome.in_time_s = (len(self.outcome.in_time) - before) / plan.seconds

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 18):
            now = time.monotonic()
            if b"PING\r\n" in data:
                writer.write(b"PONG\r\n")
            self._unread += data
            place = 0
            while message := _MESSAGE.search(self._unread, place):
                number, head, size = message.groups()
                end = message.end() + int(size)
                if len(self._unread) < end:
                    break
                self._note(int(number), self._unread[message.end() : message.end() + int(head or 0)], now)
                place = end
            self._unread = self._unread[place:]

    def _note(self, number: int, headers: bytes, now: float) -> None:
        if (sent_at := self._sent_at.pop(number, None)) is None:  # answered already
            return
        waited_s = now - sent_at
        code = re.search(rb"Nats-Service-Error-Code: *(\d+)", headers)
        if code is None:
            (self.outcome.in_time if waited_s <= self._plan.deadline_s else self.outcome.late).append(waited_s)
        elif code[1] == b"429":
            self.outcome.refused.append(waited_s)
        else:
            self.outcome.failed.append(code[1].decode())


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    outcome = asyncio.run(Flood(Plan(**json.load(sys.stdin))).run(host, int(port)))
    json.dump(asdict(outcome), sys.stdout)
