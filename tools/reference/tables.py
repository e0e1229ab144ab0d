"""The errors, the metrics and the list of decision records."""

import inspect
from pathlib import Path
from unittest.mock import Mock

from prometheus_client import Metric

from service.gateway.telemetry import GatewayTelemetry
from service.residency import overview
from service.telemetry import Telemetry
from subjects.errors import CODES

from .markdown import escaped, table

_UNREAD = Mock()
"""In the place of what a gauge reads: only its meaning is asked for."""


def errors() -> str:
    """A row for each code."""
    return table(
        ("code", "exception", "meaning", "retryable"),
        [
            (str(code), f"`{error.__name__}`", escaped(inspect.getdoc(error) or ""), "yes" if error.retryable else "no")
            for code, error in CODES.items()
        ],
    )


def _name(family: Metric) -> str:
    return f"{family.name}_total" if family.type == "counter" else family.name


def metrics() -> str:
    """A row for each metric of a worker."""
    counted = [(_name(family), family.type, family.documentation) for family in Telemetry().registry.collect()]
    read = [(name, "gauge", meaning) for name, meaning, _ in overview.read_on_demand(_UNREAD, _UNREAD)]
    return table(
        ("metric", "type", "meaning"),
        [(f"`{name}`", kind, escaped(meaning)) for name, kind, meaning in sorted(counted + read)],
    )


def gateway_metrics() -> str:
    """A row for each metric of the gateway."""
    telemetry = GatewayTelemetry()
    telemetry.in_flight(lambda: 0)
    return table(
        ("metric of the gateway", "type", "meaning"),
        [
            (f"`{_name(family)}`", family.type, escaped(family.documentation))
            for family in sorted(telemetry.registry.collect(), key=_name)
        ],
    )


def decisions(folder: Path) -> str:
    """A line for each record."""
    records = sorted(folder.glob("[0-9]*.md"))
    return "".join(
        f"- [{record.read_text('utf-8').partition(chr(10))[0].lstrip('# ')}]({record.name})\n" for record in records
    )
