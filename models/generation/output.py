"""Text of one completion from its token ids: incremental detokenisation, stop strings, pieces to send."""

from collections import deque
from collections.abc import Sequence

from .tokenizer import GenerationTokenizer
from .types import Piece, Request, TokenLogprob


class Detokeniser:
    """The text of one completion, token by token.

    The joined results of push and flush equal the one-shot decoding of prompt and completion, without the prompt's
    text. Characters are never split, and special tokens are left out. A leading space is dropped only if the tokeniser
    drops one and `prompt`, the ids before the completion, has no text.
    """

    __slots__ = ("_decoder", "_parts", "_spaces")

    def __init__(self, tokenizer: GenerationTokenizer, prompt: Sequence[int] = ()) -> None:
        decoding = tokenizer.decoding
        self._parts = decoding.parts
        self._decoder = decoding.new_decoder()
        is_start = not any(self._parts.get(token) for token in reversed(prompt))
        self._spaces = decoding.leading_spaces if is_start else 0

    def push(self, token: int) -> str:
        """Add a token -> the characters that are now final, often none. Unknown and special ids add nothing."""
        part = self._parts.get(token)
        if part is None:
            return ""
        text = self._decoder.push(part)
        return self._without_spaces(text) if self._spaces else text

    @property
    def pending(self) -> str:
        """Characters that follow if the text ends here, and that another token may still change."""
        return self._decoder.pending

    def flush(self) -> str:
        """End the text -> the rest of it, with U+FFFD for bytes that make no character."""
        text = self._decoder.flush()
        return self._without_spaces(text) if self._spaces else text

    def _without_spaces(self, text: str) -> str:
        while self._spaces and text.startswith(" "):
            text = text[1:]
            self._spaces -= 1
        if text:
            self._spaces = 0
        return text


class StopMatcher:
    """Ends a text at the first stop string in it, however the text is split.

    First is the string that ends first; of several, the longest. It is not part of the text. stops: none is empty.
    """

    __slots__ = ("_held", "_initials", "_longest", "_stops")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._initials = frozenset(stop[0] for stop in self._stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Add text -> what may be sent, and the stop string that ended it, if any. Only a possible beginning of a stop
        string is held back."""
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
        """What `push` would return if it found a stop string in this text, else None. Adds nothing."""
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
        """How many characters come before the longest suffix that is the beginning of a stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._initials and any(stop.startswith(text[start:]) for stop in self._stops):
                return start
        return len(text)


class TextOutput:
    """Makes the pieces of a request: whole characters, never empty, and never text that a stop string may remove.

    A token and its log-probability belong to the piece with the token's first character, so a piece may hold the rest
    of a token and count no token. Stop strings are matched from token number min_tokens on; text before is sent as is.
    """

    __slots__ = ("_detokeniser", "_length", "_pending", "_request", "_sent", "_stops", "_unstoppable")

    def __init__(self, request: Request, tokenizer: GenerationTokenizer) -> None:
        self._request = request.id
        self._detokeniser = Detokeniser(tokenizer, request.prompt)
        self._stops = StopMatcher(request.stop)
        self._unstoppable = max(request.min_tokens - 1, 0)
        self._pending: deque[tuple[int, TokenLogprob | None]] = deque()
        self._length = self._sent = 0

    def push(self, token: int, logprob: TokenLogprob | None) -> tuple[Piece | None, str | None]:
        """Add a token -> the text that is now final, if any, and the stop string that ended it, if any."""
        self._pending.append((self._length, logprob))
        text = self._detokeniser.push(token)
        self._length += len(text)
        if self._unstoppable:
            self._unstoppable -= 1
            return self._piece(text), None
        safe, stop = self._stops.push(text)
        if stop is None and (ended := self._stops.find(self._detokeniser.pending)) is not None:
            more, stop = ended  # another token could change these characters, but none will come
            safe += more
        return self._piece(safe), stop

    def flush(self) -> tuple[Piece | None, str | None]:
        """End the text -> the rest of it, and the stop string that only its end completed, if any."""
        text = self._detokeniser.flush()
        self._length += len(text)
        safe, stop = self._stops.push(text)
        return self._piece(safe if stop is not None else safe + self._stops.flush()), stop

    def _piece(self, text: str) -> Piece | None:
        if not text:
            return None
        self._sent += len(text)
        begun = []
        while self._pending and self._pending[0][0] < self._sent:
            begun.append(self._pending.popleft()[1])
        return Piece(self._request, text, len(begun), tuple(logprob for logprob in begun if logprob is not None))
