"""Logs, metrics and traces of the process. Never the text of a request."""

import logging
import sys
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import structlog
from opentelemetry import propagate, trace
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from subjects import names
from subjects.errors import MLError

from .endpoint.call import Call
from .generation.telemetry import GenerationTelemetry

log = structlog.get_logger(__name__)

LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
POWERS = tuple(2.0**n for n in range(16))
WASTE = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)


def configure_logging(log_format: str, level: str) -> None:
    """Console lines on a terminal, JSON lines otherwise (or as told), on standard error."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderers: list[Any] = [structlog.dev.ConsoleRenderer()]
    if not console:
        renderers = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


class Telemetry:
    """Counts what ends and what runs; the figures go to Prometheus and into $SRV.STATS.

    tracer: None leaves requests untraced, at no cost.
    """

    def __init__(self, tracer: trace.Tracer | None = None) -> None:
        self.registry = registry = CollectorRegistry()
        self._tracer = tracer
        self._errors: Counts[int] = Counts()
        self._batches: dict[str, Counts[str]] = {}
        self._latency = Histogram(
            "mlbus_request_seconds",
            "From receipt of a request to its last reply, by route",
            ["route"],
            registry=registry,
            buckets=LATENCY_S,
        )
        self._failed = Counter("mlbus_errors", "Error replies, by route and code", ["route", "code"], registry=registry)
        self._unanswerable = Counter(
            "mlbus_unanswerable_requests",
            "Requests dropped for their reply subject, see reply_prefixes",
            registry=registry,
        )
        self._denied = Counter(
            "mlbus_replies_denied",
            "Replies that the server's permissions refused; their work ends at once",
            registry=registry,
        )
        self._texts = Histogram(
            "mlbus_batch_texts", "Texts of a batch, by model", ["model"], registry=registry, buckets=POWERS
        )
        self._tokens = Histogram(
            "mlbus_batch_tokens",
            "Tokens of a batch without padding, by model",
            ["model"],
            registry=registry,
            buckets=POWERS,
        )
        self._waste = Histogram(
            "mlbus_batch_padding_ratio",
            "Share of padding in a batch, by model",
            ["model"],
            registry=registry,
            buckets=WASTE,
        )
        self._device = Counter("mlbus_device_seconds", "Time in forward passes, by model", ["model"], registry=registry)
        self._by_route: dict[str, Any] = {}
        self.generation = GenerationTelemetry(registry)

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """A figure that is looked up whenever somebody asks for the metrics."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def ended(self, call: Call, seconds: float, error: MLError | None) -> None:
        """A request has had its terminal answer."""
        observed = self._by_route.get(call.route)
        if observed is None:
            observed = self._by_route[call.route] = self._latency.labels(call.route)
        observed.observe(seconds)
        if error is not None:
            self._errors[error.code] += 1
            self._failed.labels(call.route, error.code).inc()
            log.debug("request.refused", route=call.route, request_id=call.asked.request_id, code=error.code)

    def unanswerable(self) -> None:
        """A request was dropped: it named no subject that may be answered."""
        self._unanswerable.inc()

    def denied(self) -> None:
        """The server refused an answer."""
        self._denied.inc()

    def batch_ran(self, model: str, texts: int, tokens: int, computed: int, seconds: float) -> None:
        """A batch came back from the device; seconds on it."""
        counts = self._batches.setdefault(model, Counts())
        counts.update(batches=1, texts=texts, tokens=tokens, computed_tokens=computed)
        self._texts.labels(model).observe(texts)
        self._tokens.labels(model).observe(tokens)
        self._waste.labels(model).observe(1 - tokens / computed)
        self._device.labels(model).inc(seconds)

    def figures(self) -> Mapping[str, Any]:
        """Totals since the start, for STATS."""
        return {
            "errors": {str(code): count for code, count in self._errors.items()},
            "batches": {model: dict(counts) for model, counts in self._batches.items()},
            "generation": self.generation.figures(),
        }

    def traced(self, call: Call) -> AbstractContextManager[Any]:
        """A server span that continues the caller's traceparent, where OpenTelemetry is configured."""
        return nullcontext() if self._tracer is None else self._span(self._tracer, call)

    @contextmanager
    def _span(self, tracer: trace.Tracer, call: Call) -> Iterator[None]:
        carrier = {names.TRACEPARENT: call.asked.traceparent} if call.asked.traceparent else {}
        attributes = {"messaging.system": "nats", "mlbus.request_id": call.asked.request_id}
        with tracer.start_as_current_span(
            f"ml.{call.route}",
            propagate.extract(carrier),
            trace.SpanKind.SERVER,
            attributes=attributes,
            record_exception=False,
        ):
            yield


def configured_tracer() -> trace.Tracer | None:
    """A tracer if this process has OpenTelemetry configured (as by `opentelemetry-instrument`), else None."""
    unset = isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
    return None if unset else trace.get_tracer("mlbus")
