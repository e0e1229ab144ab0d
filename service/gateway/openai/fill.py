"""Prompts that hold a model's tokens to fill in the middle as text, as editors write them."""

import re

_FORMS = (
    r"<fim_prefix>(.*)<fim_suffix>(.*)<fim_middle>",  # StarCoder
    r"<\|fim_prefix\|>(.*)<\|fim_suffix\|>(.*)<\|fim_middle\|>",  # Qwen, Codestral's readers
    r"<PRE> ?(.*) <SUF>(.*) <MID>",  # CodeLlama
    r"<｜fim▁begin｜>(.*)<｜fim▁hole｜>(.*)<｜fim▁end｜>",  # noqa: RUF001  DeepSeek
)
_GAPS = tuple(re.compile(form, re.DOTALL) for form in _FORMS)


def gap_in(prompt: str) -> tuple[str, str] | None:
    """The text before and behind the gap; None if the prompt is a plain one.

    The worker lays the two out as the model that serves was trained, whichever model's tokens these are.
    """
    found = next((found for gap in _GAPS if (found := gap.fullmatch(prompt))), None)
    return (found[1], found[2]) if found else None
