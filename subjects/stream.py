"""Frames of a streamed reply, and the sentinel that ends it (NATS ADR-47).

Frames are numbered from 0 and never empty. The last one is `done` or `error`; after it comes one message with an
empty body and no headers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from . import names
from .errors import FrameLost, Internal

CHUNK = "chunk"
TOKEN = "token"
JOB = "job"
PING = "ping"
DONE = "done"
ERROR = "error"

REPLY = "reply"
"""In place of an event: the message is no frame but the one reply to a request that allowed both."""

STILL_THERE = "probe"
"""The event of a message to the subject in Ml-Caller, which only checks that somebody listens there."""

SENTINEL = b""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message of a stream, its body not yet decoded."""

    event: str
    seq: int
    body: bytes

    @property
    def last(self) -> bool:
        return self.event in (DONE, ERROR)


def frame_headers(event: str, seq: int) -> dict[str, str]:
    return {names.EVENT: event, names.SEQ: str(seq)}


def read_frame(headers: Mapping[str, str], body: bytes, expected_seq: int) -> Frame | None:
    """The frame in a message; None for a repeated one: a worker whose connection broke may send a frame twice.

    Raises FrameLost, or Internal if the message is not a frame.
    """
    event, seq = headers.get(names.EVENT, ""), headers.get(names.SEQ, "")
    if not event or not seq.isdigit():
        raise Internal("the reply is not a frame: Ml-Event and Ml-Seq are missing")
    if int(seq) < expected_seq:
        return None
    if int(seq) > expected_seq:
        raise FrameLost(f"a frame of the stream is missing: expected {expected_seq}, got {seq}")
    return Frame(event, int(seq), body)
