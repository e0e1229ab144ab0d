"""Handlers on the subjects of the table (subjects/routes.py), as one worker serves them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from subjects import names
from subjects.routes import ROUTES, Route

from .call import Call

Answer: TypeAlias = Callable[[Any, Call], Any]
"""Takes a validated request; gives an awaitable of the one reply, or Frames where the route has frames."""


@dataclass(frozen=True, slots=True)
class Handler:
    """What answers on a subject.

    answer_here: what answers where this worker is asked by its id, if that is something else.
    ready_in_s: when a request would be answered, in seconds from now, going by its body that nobody has read.
    """

    answer: Answer
    answer_here: Answer | None = None
    ready_in_s: Callable[[Call], float] | None = None


@dataclass(frozen=True, slots=True)
class ServedRoute:
    """A subject that this worker subscribes to.

    queue: the queue group, of whose workers one answers; empty: all that subscribe do.
    """

    name: str
    route: Route
    queue: str
    answer: Answer
    ready_in_s: Callable[[Call], float] | None = None


def served_routes(handlers: Mapping[str, Handler], worker_id: str) -> Iterator[ServedRoute]:
    """The routes of handlers by subject, and those on which this worker is asked by its id."""
    for subject, handler in handlers.items():
        route = ROUTES[subject]
        queue = "" if route.every_worker else names.QUEUE_GROUP
        yield ServedRoute(route.name, route, queue, handler.answer, handler.ready_in_s)
        if route.by_worker:
            answer = handler.answer_here or handler.answer
            yield ServedRoute(f"{route.name}-here", route.to_worker(worker_id), "", answer, handler.ready_in_s)
