"""Pages with generated parts: `<!-- generated: NAME -->`, the part, `<!-- end: NAME -->`."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from . import commands, editors, messages, openai, settings, tables

REPOSITORY = Path(__file__).parents[2]
PARTS: Mapping[str, Callable[[], str]] = {
    "messages": messages.subjects,
    "settings": settings.settings,
    "catalogue": settings.catalogue,
    "commands": commands.commands,
    "errors": tables.errors,
    "metrics": tables.metrics,
    "openai": openai.parameters,
    "openai_ignored": openai.ignored,
    "openai_neutral": openai.neutral,
    **editors.PARTS,
    "gateway_metrics": tables.gateway_metrics,
    "decisions": lambda: tables.decisions(REPOSITORY / "docs" / "decisions"),
}
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end: \2 -->\n)", re.S)


def documents() -> list[Path]:
    """All pages of docs/."""
    return sorted((REPOSITORY / "docs").rglob("*.md"))


def refreshed(page: str) -> str:
    """The page's text with each generated part made anew. Raises KeyError where nothing makes a part of that name."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n{part[3]}", page)
