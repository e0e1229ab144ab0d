"""Logs, metrics and traces of the process. Never the text of a request."""

import functools
import logging
import sys
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import structlog
from opentelemetry import propagate, trace
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from models.generation.types import Finished
from subjects import names
from subjects.errors import MLError

from .endpoint.call import Call

log = structlog.get_logger(__name__)

LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
POWERS = tuple(2.0**n for n in range(16))
PADDING = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
FIRST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5)
STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 30)


def configure_logging(log_format: str, level: str) -> None:
    """Log to standard error: lines for a console on a terminal, else JSON; log_format may say which."""
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


def _histogram(
    registry: CollectorRegistry, name: str, help_text: str, buckets: tuple[float, ...], label: str
) -> Histogram:
    return Histogram(f"mlbus_{name}", help_text, [label], registry=registry, buckets=buckets)


def _counter(registry: CollectorRegistry, name: str, help_text: str, *labels: str) -> Counter:
    return Counter(f"mlbus_{name}", help_text, labels, registry=registry)


class GenerationTelemetry:
    """Counts by model. Times in seconds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        histogram = functools.partial(_histogram, registry, label="model")
        counter = functools.partial(_counter, registry)
        self._first = histogram(
            "generate_ttft_seconds", "From receipt of a request to its first text, by model", FIRST_S
        )
        self._between = histogram("generate_inter_token_seconds", "Between two pieces of one text, by model", BETWEEN_S)
        self._steps = histogram("generate_step_seconds", "Duration of an engine's step, by model", STEP_S)
        self._prompt = counter("generate_prompt_tokens", "Prompt tokens of ended completions, by model", "model")
        self._cached = counter(
            "generate_prefix_hit_tokens",
            "Prompt tokens of ended completions that were in the prefix cache, by model",
            "model",
        )
        self._made = counter("generate_completion_tokens", "Generated tokens of ended completions, by model", "model")
        self._ended = counter(
            "generate_completions", "Ended completions, by model and finish reason", "model", "reason"
        )
        self._refused = counter(
            "generate_refused",
            "Requests refused for a full queue or a deadline that it leaves no time for, by model",
            "model",
        )
        self._counts: dict[str, Counts[str]] = {}

    def stepped(self, model: str, seconds: float) -> None:
        """Record an engine's step."""
        self._steps.labels(model).observe(seconds)

    def first_piece(self, model: str, seconds: float) -> None:
        """Record the first piece of a request's text: how long after its receipt it came."""
        self._first.labels(model).observe(seconds)

    def next_piece(self, model: str, seconds: float) -> None:
        """Record a later piece of a text: how long after the one before it came."""
        self._between.labels(model).observe(seconds)

    def completed(self, model: str, finished: Finished) -> None:
        """Count an ended completion and its tokens."""
        usage = finished.usage
        self._prompt.labels(model).inc(usage.prompt)
        self._cached.labels(model).inc(usage.cached)
        self._made.labels(model).inc(usage.completion)
        self._ended.labels(model, finished.reason).inc()
        counts = self._counts.setdefault(model, Counts())
        counts.update(
            {
                "completions": 1,
                "prompt_tokens": usage.prompt,
                "prefix_hit_tokens": usage.cached,
                "completion_tokens": usage.completion,
                finished.reason: 1,
            }
        )

    def refused(self, model: str) -> None:
        """Count a request that was refused: the queue was full, or too long for its deadline."""
        self._refused.labels(model).inc()
        self._counts.setdefault(model, Counts()).update(refused=1)

    def figures(self) -> Mapping[str, Mapping[str, int]]:
        """Totals since the start, by model."""
        return {model: dict(counts) for model, counts in self._counts.items()}


class Telemetry:
    """Metrics of requests and batches, for Prometheus and $SRV.STATS; traces of requests.

    tracer: None leaves requests untraced, at no cost. unanswerable, denied: called for each request that is dropped for
    its reply subject, and for each answer that the server refuses.
    """

    def __init__(self, tracer: trace.Tracer | None = None) -> None:
        self.registry = registry = CollectorRegistry()
        self._tracer = tracer
        self._errors: Counts[int] = Counts()
        self._batches: dict[str, Counts[str]] = {}
        histogram, counter = functools.partial(_histogram, registry), functools.partial(_counter, registry)
        self._latency = histogram(
            "request_seconds", "From receipt of a request to its last reply, by route", LATENCY_S, "route"
        )
        self._failed = counter("errors", "Error replies, by route and code", "route", "code")
        self.unanswerable = counter(
            "unanswerable_requests", "Requests dropped for their reply subject, see reply_prefixes"
        ).inc
        self.denied = counter(
            "replies_denied", "Replies that the server's permissions refused; their work ends at once"
        ).inc
        self._texts = histogram("batch_texts", "Texts of a batch, by model", POWERS, "model")
        self._tokens = histogram("batch_tokens", "Tokens of a batch without padding, by model", POWERS, "model")
        self._padding = histogram("batch_padding_ratio", "Share of padding in a batch, by model", PADDING, "model")
        self._device = counter("device_seconds", "Time in forward passes, by model", "model")
        self._by_route: dict[str, Any] = {}
        self.generation = GenerationTelemetry(registry)

    def gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        """Add a figure that is read whenever the metrics are."""
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def ended(self, call: Call, seconds: float, error: MLError | None) -> None:
        """Record a request that has had its terminal answer."""
        observed = self._by_route.get(call.route)
        if observed is None:
            observed = self._by_route[call.route] = self._latency.labels(call.route)
        observed.observe(seconds)
        if error is not None:
            self._errors[error.code] += 1
            self._failed.labels(call.route, error.code).inc()
            log.debug("request.refused", route=call.route, request_id=call.headers.request_id, code=error.code)

    def batch_ran(self, model: str, texts: int, tokens: int, computed: int, seconds: float) -> None:
        """Record a batch that came back from the device, after this many seconds on it."""
        counts = self._batches.setdefault(model, Counts())
        counts.update(batches=1, texts=texts, tokens=tokens, computed_tokens=computed)
        self._texts.labels(model).observe(texts)
        self._tokens.labels(model).observe(tokens)
        self._padding.labels(model).observe(1 - tokens / computed)
        self._device.labels(model).inc(seconds)

    def figures(self) -> Mapping[str, Any]:
        """Totals since the start, for STATS."""
        return {
            "errors": {str(code): count for code, count in self._errors.items()},
            "batches": {model: dict(counts) for model, counts in self._batches.items()},
            "generation": self.generation.figures(),
        }

    def traced(self, call: Call) -> AbstractContextManager[Any]:
        """A server span that continues the caller's traceparent, if OpenTelemetry is configured."""
        return nullcontext() if self._tracer is None else self._span(self._tracer, call)

    @contextmanager
    def _span(self, tracer: trace.Tracer, call: Call) -> Iterator[None]:
        carrier = {names.TRACEPARENT: call.headers.traceparent} if call.headers.traceparent else {}
        attributes = {"messaging.system": "nats", "mlbus.request_id": call.headers.request_id}
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
