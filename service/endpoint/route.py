"""Handlers on the subjects of the table (subjects/routes.py), as one worker serves them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from subjects import names
from subjects.errors import MLError
from subjects.routes import ROUTES, Route

from .call import Call

Answer: TypeAlias = Callable[[Any, Call], Any]
"""Takes a validated request; gives an awaitable of the one reply, or Frames where the route has frames."""


@dataclass(frozen=True, slots=True)
class Handler:
    """What answers on a subject.

    answer_here: what answers if this worker is asked by its id, if that is something else. ready_in_s: when a request
    would be answered, in seconds from now, judged by its unread body.
    """

    answer: Answer
    answer_here: Answer | None = None
    ready_in_s: Callable[[Call], float] | None = None


@dataclass(slots=True)
class Counts:
    """The figures of a route for STATS; times in nanoseconds, from receipt to the last reply."""

    requests: int = 0
    errors: int = 0
    last_error: str = ""
    busy_ns: int = 0

    def record(self, busy_ns: int, error: MLError | None) -> None:
        """error: only its kind is shown; its message may quote what the caller sent."""
        self.busy_ns += busy_ns
        if error is not None:
            self.errors += 1
            self.last_error = f"{error.code}: {type(error).__name__}"


@dataclass(frozen=True, slots=True)
class ServedRoute:
    """A subject that this worker subscribes to.

    queue: the queue group, of whose workers one answers; empty: all that subscribe do.
    """

    name: str
    route: Route
    queue: str
    answer: Answer
    ready_in_s: Callable[[Call], float] | None
    counts: Counts = field(default_factory=Counts)


def served_routes(handlers: Mapping[str, Handler], worker_id: str) -> Iterator[ServedRoute]:
    """The routes of handlers by subject, and those on which this worker is asked by its id."""
    for subject, handler in handlers.items():
        route = ROUTES[subject]
        queue = "" if route.every_worker else names.QUEUE_GROUP
        yield ServedRoute(route.name, route, queue, handler.answer, handler.ready_in_s)
        if route.by_worker:
            answer = handler.answer_here or handler.answer
            yield ServedRoute(f"{route.name}-here", route.to_worker(worker_id), "", answer, handler.ready_in_s)
