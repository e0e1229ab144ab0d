"""Stop strings, looked for in a text as it comes. Knows no token."""

from collections.abc import Sequence


class StopMatcher:
    """Ends a text at the first stop string in it, wherever the text is split.

    The first is the one whose end comes first; where several end there, the longest, which cuts off most. It is no part
    of the text. stops: none of them empty.
    """

    __slots__ = ("_first", "_held", "_longest", "_stops")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._first = frozenset(stop[0] for stop in self._stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Add text -> what may be sent, and the stop string that ended it, after which nothing may be added.

        Held back is only what may yet turn out to be the beginning of a stop string.
        """
        if not self._stops:
            return text, None
        if (found := self.find(text)) is not None:
            self._held = ""
            return found
        text = self._held + text
        safe = self._safe(text)
        self._held = text[safe:]
        return text[:safe], None

    def find(self, text: str) -> tuple[str, str] | None:
        """What `push` would give if this text ended it, None where it would not; nothing is added."""
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if not found:
            return None
        _, start, stop = min(found)
        return text[:start], stop

    def flush(self) -> str:
        """End the text -> what was held back."""
        held, self._held = self._held, ""
        return held

    def _safe(self, text: str) -> int:
        """How many characters come before the longest end of the text with which a stop string begins."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first and any(stop.startswith(text[start:]) for stop in self._stops):
                return start
        return len(text)
