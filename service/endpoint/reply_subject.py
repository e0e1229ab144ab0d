"""Where a request may have us answer: below the prefixes that nats-server.conf lets a worker publish to, nowhere else.

The requester names the reply subject freely, also one that it may not publish to itself: without this check a client
could have the empty message at the end of a stream sent to `$JS.API.STREAM.DELETE.…`, on a server that permits more.
"""

import re
from collections.abc import Callable, Sequence

from nats.aio.msg import Msg

from ..bus.credentials import inbox_prefix
from ..bus.log import RareLog

IMPORTED = "_R_"
"""Below it the server takes answers to requests that came in from another account."""
USERS_INBOX = "_INBOX_ml"
"""Below it each user has an inbox of its own, where no other may listen."""
PREFIXES = ("_INBOX", USERS_INBOX, IMPORTED, "ml.watch")
JETSTREAM_INBOX = inbox_prefix("worker")
"""Below it the server answers a worker; whoever could have something sent there could answer in its place."""
WORKERS_INBOX = "_INBOX_ml.worker"
"""Below it workers answer each other."""
MOST_BYTES = 1024
"""Of a subject: a server closes the connection for good over a line that is too long, in general 4,096 bytes."""
_PREFIX = re.compile(r"[^\s.*>$][^\s.*>]*(\.[^\s.*>]+)*")


class ReplySubjects:
    """The subjects below some prefixes. refused: called for each request that could not be answered."""

    def __init__(self, prefixes: Sequence[str], refused: Callable[[], None] = lambda: None) -> None:
        self.prefixes = tuple(prefixes)
        self._below = re.compile(rf"(?:{'|'.join(map(re.escape, prefixes))})(?:\.[^\s.*>]+)+")
        self._below_in_any_case = re.compile(self._below.pattern, re.IGNORECASE)
        self._refused = refused
        self._rare = RareLog()

    def allow(self, subject: str) -> bool:
        """Whether a worker may publish there for somebody else."""
        return len(subject.encode()) <= MOST_BYTES and self._below.fullmatch(subject) is not None

    def source(self, subject: str) -> str:
        """Whom answers to a subject that is allowed are for, as far as it tells: its prefix and the token behind it.

        That is a user below `_INBOX_ml`, and below `_INBOX` what a client drew for its connection or its request.
        """
        prefix = max((prefix for prefix in self.prefixes if subject.startswith(f"{prefix}.")), key=len)
        return f"{prefix}.{subject[len(prefix) + 1 :].partition('.')[0]}"

    def user(self, subject: str) -> str:
        """Whom answers to a subject that is allowed are for, as far as the server sees to it.

        That is a user below `_INBOX_ml`. What comes behind another prefix a caller chooses freely: there all are one.
        """
        source = self.source(subject)
        return source if source.startswith(f"{USERS_INBOX}.") else source.rpartition(".")[0]

    def include(self, denied: str) -> bool:
        """Whether a publish that was denied is likely to have been an answer; the subject comes in lower case."""
        return self._below_in_any_case.fullmatch(denied) is not None

    def admit(self, request: Msg) -> bool:
        """Whether a request can be answered. Where not, it is counted and, now and then, logged."""
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
