"""The loop of a process that completes prompts for a measurement: a command a line, a JSON document back.

Imports the standard library alone, so that a peer can run it in an environment of its own. Between commands the process
waits for a line, and disturbs no other contender.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

Ids: TypeAlias = Sequence[Sequence[int]]
Arrivals: TypeAlias = list[list[float]]
"""For each prompt the seconds from the start at which each of its tokens was there."""


class Clock:
    """Notes when tokens come, in seconds since it was made."""

    def __init__(self, prompts: int) -> None:
        self._started = time.perf_counter()
        self.arrivals: Arrivals = [[] for _ in range(prompts)]

    def tick(self, prompt: int) -> None:
        """A token of this prompt is there."""
        self.arrivals[prompt].append(time.perf_counter() - self._started)

    def tick_all(self) -> None:
        """A token of every prompt is there."""
        now = time.perf_counter() - self._started
        for arrivals in self.arrivals:
            arrivals.append(now)

    def since_start(self, moments: Sequence[float]) -> list[float]:
        """Readings of time.perf_counter as seconds since the start."""
        return [moment - self._started for moment in moments]


def serve(commands: dict[str, Callable[..., Any]]) -> None:
    """Answer commands until the input ends: `{"command": name, ...arguments}` -> `{"answer": ...}`."""
    say(ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        say(answer=commands[asked.pop("command")](**asked))


def say(**document: Any) -> None:
    """One line to the parent."""
    print(json.dumps(document), flush=True)
