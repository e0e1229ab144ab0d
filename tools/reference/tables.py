"""The errors, the metrics and the list of decision records."""

import inspect
from pathlib import Path

from service.telemetry import Telemetry
from subjects.errors import CODES

from .markdown import escaped, table


def errors() -> str:
    """A row for each code."""
    return table(
        ("code", "exception", "meaning", "retryable"),
        [
            (str(code), f"`{error.__name__}`", escaped(inspect.getdoc(error) or ""), "yes" if error.retryable else "no")
            for code, error in CODES.items()
        ],
    )


def metrics() -> str:
    """A row for each metric of a worker."""
    families = sorted(Telemetry().registry.collect(), key=lambda family: family.name)
    return table(
        ("metric", "type", "meaning"),
        [
            (
                f"`{family.name}{'_total' if family.type == 'counter' else ''}`",
                family.type,
                escaped(family.documentation),
            )
            for family in families
        ],
    )


def decisions(folder: Path) -> str:
    """A line for each record."""
    records = sorted(folder.glob("[0-9]*.md"))
    return "".join(
        f"- [{record.read_text('utf-8').partition(chr(10))[0].lstrip('# ')}]({record.name})\n" for record in records
    )
