"""Token ids to text, one at a time. Knows no model and no stop strings."""

from collections.abc import Sequence

from .tokenizer import GenerationTokenizer


class Detokeniser:
    """The text of one completion.

    What push and flush give, joined, is what the tokeniser makes of prompt and completion at once, without the
    prompt's own text. No character comes in parts, and special tokens are left out. A leading space is dropped only
    where the tokeniser drops one and nothing stands before it: prompt, the ids in front, is asked for that.
    """

    __slots__ = ("_characters", "_parts", "_spaces")

    def __init__(self, tokenizer: GenerationTokenizer, prompt: Sequence[int] = ()) -> None:
        spelling = tokenizer.spelling
        self._parts = spelling.parts
        self._characters = spelling.characters()
        begins = not any(self._parts.get(token) for token in reversed(prompt))
        self._spaces = spelling.leading_spaces if begins else 0

    def push(self, token: int) -> str:
        """Add a token -> the characters that are now sure, often none. An id without a token is left out."""
        part = self._parts.get(token)
        if part is None:
            return ""
        text = self._characters.push(part)
        return self._begun(text) if self._spaces else text

    @property
    def owed(self) -> str:
        """Characters that are there if the text ends here, and may be others if it does not."""
        return self._characters.owed

    def flush(self) -> str:
        """End the text -> the rest of it; bytes that make no character as U+FFFD."""
        text = self._characters.flush()
        return self._begun(text) if self._spaces else text

    def _begun(self, text: str) -> str:
        while self._spaces and text.startswith(" "):
            text = text[1:]
            self._spaces -= 1
        if text:
            self._spaces = 0
        return text
