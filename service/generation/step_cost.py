"""What a step of an engine takes: so much for the texts in it, and so much for each token of prompts beside them.

The two are learned apart: a text's next token costs many times what a token of a prompt costs.
"""

from ..cost import Cost

_KEPT = 0.98
"""Of what is known of prompts, after another step with one."""
_WEIGHT = 0.05  # of the latest step in the average of prompts' tokens


class StepCost:
    """prompt_token_s: what a token of a prompt takes, in seconds. prompt_tokens: how many are in a step on average, and
    most_prompt_tokens at most."""

    def __init__(self) -> None:
        self.prompt_tokens = 0.0
        self.most_prompt_tokens = 0
        self._texts = Cost()
        self._most_texts = 0
        self._tokens = self._seconds = 0.0

    @property
    def prompt_token_s(self) -> float:
        return self._seconds / self._tokens if self._tokens else 0.0

    def took(self, texts: int, prompt_tokens: int, seconds: float) -> None:
        """A step has computed the next tokens of so many texts, and so many tokens of prompts."""
        if prompt_tokens:
            self._tokens = _KEPT * self._tokens + prompt_tokens
            self._seconds = _KEPT * self._seconds + max(0.0, seconds - self._texts.expected_s(texts))
        if texts:
            self._texts.took(texts, max(0.0, seconds - self.prompt_token_s * prompt_tokens))
        self._most_texts = max(self._most_texts, texts)
        self.most_prompt_tokens = max(self.most_prompt_tokens, prompt_tokens)
        self.prompt_tokens += _WEIGHT * (prompt_tokens - self.prompt_tokens)

    def texts_s(self, texts: int) -> float:
        """What a step will take with so many texts and no prompts; 0 while nothing is known.

        Past one more than there ever were, texts are taken to take as much longer as they are more: a step of twice the
        size may need twice the time. One more is tried, or nobody would ever learn what several cost together.
        """
        known = min(texts, self._most_texts + 1)
        return self._texts.expected_s(known) * texts / known if known else self._texts.expected_s(0)

    def prompts_s(self, tokens: float, texts: int) -> float:
        """What so many tokens of prompts will take beside so many texts, whose next tokens are in each of the steps."""
        steps = tokens // self.most_prompt_tokens if self.most_prompt_tokens else 0
        return self.prompt_token_s * tokens + steps * self.texts_s(texts)
