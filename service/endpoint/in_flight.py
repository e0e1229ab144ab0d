"""The requests in flight, and the limits within which more are taken on."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from subjects.errors import Busy, Cancelled, MLError, TooLarge

from ..admission import past_deadline, retry_after_ms, shutting_down
from .call import Call
from .route import ServedRoute


@dataclass(frozen=True, slots=True)
class Limits:
    """What one worker holds at once; beyond that it answers 429.

    requests, request_bytes: of inference, and as many of other requests. watches: lasting streams; one user has at most
    a quarter of them.
    """

    requests: int
    request_bytes: int
    default_timeout_s: float
    watches: int = 256


@dataclass(slots=True)
class _Group:
    """Requests that count towards one limit, the bytes of their bodies, and how many each caller has."""

    requests: int = 0
    size: int = 0
    by_caller: Counter[str] = field(default_factory=Counter)

    def add(self, call: Call, times: int = 1) -> None:
        """One more; with times -1 one less."""
        self.requests += times
        self.size += times * call.size
        self.by_caller[call.caller] += times
        if not self.by_caller[call.caller]:
            del self.by_caller[call.caller]


class InFlight:
    """The requests that this worker has admitted and not answered, and its limits on them.

    calls: by serial number. service_s: how long a request takes, as a moving average."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.calls: dict[int, Call] = {}
        self.service_s = 0.05
        self._groups: defaultdict[tuple[bool, bool], _Group] = defaultdict(_Group)

    @property
    def request_bytes(self) -> int:
        """Bytes of the bodies of all requests in flight."""
        return sum(group.size for group in self._groups.values())

    def refusal(self, served: ServedRoute, call: Call) -> MLError | None:
        """Why a request is not taken on: over a limit, or too late whatever it asks."""
        group, limits = self._group(served), self.limits
        most = limits.watches if call.lasting else limits.requests
        share = max(1, most // 4)
        if call.size > limits.request_bytes:
            return TooLarge(f"the request takes {call.size} bytes, this worker reads {limits.request_bytes} at most")
        if group.requests >= most:
            full = f"{most} requests"
        elif call.lasting and group.by_caller[call.caller] >= share:
            full = f"{share} such streams for the same user"
        elif group.size + call.size > limits.request_bytes:
            full = f"{limits.request_bytes} bytes of requests"
        elif served.ready_in_s is None:
            return None
        else:
            return past_deadline("this worker would take", served.ready_in_s(call), call.deadline - call.received)
        why = f"this worker holds {full} already; try again later"
        return Busy(why, retry_after_ms=retry_after_ms(self.service_s))

    def add(self, served: ServedRoute, call: Call) -> None:
        self.calls[call.serial] = call
        self._group(served).add(call)

    def remove(self, served: ServedRoute, call: Call) -> None:
        del self.calls[call.serial]
        self._group(served).add(call, -1)

    def _group(self, served: ServedRoute) -> _Group:
        return self._groups[served.route.inference, served.route.lasting]

    def cancel(self, request_id: str) -> None:
        """Cancel the requests with this id, as a caller asks."""
        for call in [call for call in self.calls.values() if call.headers.request_id == request_id]:
            call.cancel()

    def end_unheard(self, subject: str) -> None:
        """End the call whose no_listener_subject this is, and its caller's other calls."""
        if call := next((call for call in self.calls.values() if call.no_listener_subject == subject), None):
            asked, calls = call.caller_subject, self.calls.values()
            for lost in [other for other in calls if other.caller_subject == asked] if asked else [call]:
                lost.end(Cancelled("nobody waits for the answer any more"))

    async def finish(self, grace_s: float) -> None:
        """Let the calls end, lasting streams at once; after the grace time end the others too."""
        _shut_down(call for call in self.calls.values() if call.lasting)
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=grace_s)
        _shut_down(self.calls.values())
        if tasks := self._tasks():
            await asyncio.wait(tasks, timeout=5)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [call.task for call in self.calls.values() if call.task]


def _shut_down(calls: Iterable[Call]) -> None:
    for call in list(calls):
        call.end(shutting_down())
