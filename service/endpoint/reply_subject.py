"""The reply subjects that a worker answers: those below the prefixes that nats-server.conf lets it publish to.

A client names any reply subject, also one that it may not publish to itself: without this check it could have the empty
message at the end of a stream sent to `$JS.API.STREAM.DELETE.…`, on a server that lets the worker publish there.
"""

import re
from collections.abc import Callable, Sequence

from nats.aio.msg import Msg

from ..bus.credentials import WORKERS_INBOX, inbox_prefix
from ..bus.log import RareLog

IMPORTED = "_R_"
"""Below it the server takes answers to requests from another account."""
USERS_INBOX = "_INBOX_ml"
"""Below it each user has its own inbox, where no other may listen."""
PREFIXES = ("_INBOX", USERS_INBOX, IMPORTED, "ml.watch")
JETSTREAM_INBOX = inbox_prefix("worker")
"""Below it the server answers a worker; a client that had messages sent there could answer in its place."""
MOST_BYTES = 1024
"""Of a subject: a server closes the connection over a line that is too long, usually 4,096 bytes."""
_PREFIX = re.compile(r"[^\s.*>$][^\s.*>]*(\.[^\s.*>]+)*")


class ReplySubjects:
    """The subjects below some prefixes. refused: called for each request that cannot be answered."""

    def __init__(self, prefixes: Sequence[str], refused: Callable[[], None] = lambda: None) -> None:
        self.prefixes = tuple(prefixes)
        self._below = re.compile(rf"(?:{'|'.join(map(re.escape, prefixes))})(?:\.[^\s.*>]+)+")
        self._below_in_any_case = re.compile(self._below.pattern, re.IGNORECASE)
        self._refused = refused
        self._rare = RareLog()

    def allow(self, subject: str) -> bool:
        """Whether a worker may publish there on request."""
        return len(subject.encode()) <= MOST_BYTES and self._below.fullmatch(subject) is not None

    def caller(self, subject: str) -> str:
        """Who gets answers on an allowed subject, as far as the subject tells: its prefix and the next token.

        Below `_INBOX_ml` that is a user, below `_INBOX` a random token of a client's connection or request.
        """
        prefix = max((prefix for prefix in self.prefixes if subject.startswith(f"{prefix}.")), key=len)
        return f"{prefix}.{subject[len(prefix) + 1 :].partition('.')[0]}"

    def user(self, subject: str) -> str:
        """Who gets answers on an allowed subject, as far as the server enforces it.

        Below `_INBOX_ml` that is a user. Below another prefix callers choose the tokens: there all count as one.
        """
        caller = self.caller(subject)
        return caller if caller.startswith(f"{USERS_INBOX}.") else caller.rpartition(".")[0]

    def include(self, denied: str) -> bool:
        """Whether a denied publish was probably an answer. denied: the subject, in lower case."""
        return self._below_in_any_case.fullmatch(denied) is not None

    def admit(self, request: Msg) -> bool:
        """Whether a request can be answered; if not, it is counted, and logged at a low rate."""
        if self.allow(request.reply):
            return True
        self._refused()
        said = {"subject": request.subject, "reply": request.reply[:200]}
        self._rare.warn("request.unanswerable", **said, reply_prefixes=self.prefixes)
        return False


def checked_prefixes(prefixes: tuple[str, ...]) -> tuple[str, ...]:
    """The prefixes, if answers below them can do no harm. Raises ValueError."""
    for prefix in prefixes:
        first = prefix.partition(".")[0]
        if not _PREFIX.fullmatch(prefix):
            raise ValueError(f"{prefix!r} is no prefix of subjects: no $ first, no wildcard, no empty token")
        if first == JETSTREAM_INBOX or (first == "ml" and not f"{prefix}.".startswith("ml.watch.")):
            raise ValueError(f"{prefix!r}: answers below it could be taken for the server's own or for requests")
    if not ReplySubjects(prefixes).allow(f"{WORKERS_INBOX}.x"):
        raise ValueError(f"{WORKERS_INBOX} must be below one of them: workers ask each other there")
    return prefixes
