"""One completion's way from token ids to pieces of text. Knows no model and no other request."""

from collections import deque

from .detokenise import Detokeniser
from .request import Piece, Request, TokenLogprob
from .stops import StopMatcher
from .tokenizer import GenerationTokenizer


class TextOutput:
    """Makes a request's pieces: whole characters, never empty, and nothing that a stop string may cut off.

    A token, and with it its log-probability, goes with the piece that holds its first character; so the rest of a
    token's text may come in a piece of no tokens. Stop strings are looked for in the text that the token number
    min_tokens, and those behind it, bring: what came before has been sent.
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
        """Add a token -> the text that became sure, if any, and the stop string that ended it, if one did."""
        self._pending.append((self._length, logprob))
        text = self._detokeniser.push(token)
        self._length += len(text)
        if self._unstoppable:
            self._unstoppable -= 1
            return self._piece(text), None
        safe, stop = self._stops.push(text)
        if stop is None and (ended := self._stops.find(self._detokeniser.owed)) is not None:
            more, stop = ended  # characters that another token might change; but there will be none
            safe += more
        return self._piece(safe), stop

    def flush(self) -> tuple[Piece | None, str | None]:
        """End the text -> the rest of it, and the stop string that only its end made whole, if one did."""
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
