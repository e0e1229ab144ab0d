"""Metrics of the gateway, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ..telemetry import LATENCY_S


class GatewayTelemetry:
    """Counts by path, as in the OpenAPI document; a path that is not there counts as `none`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "mlbus_http_request_seconds",
            "From a request's headers to the last byte of its answer, by path",
            ["path"],
            registry=self.registry,
            buckets=LATENCY_S,
        )
        self._answers = Counter(
            "mlbus_http_answers", "Answers, by path and status", ["path", "status"], registry=self.registry
        )

    def in_flight(self, read: Callable[[], float]) -> None:
        """Read whenever the metrics are."""
        gauge = Gauge("mlbus_http_requests_in_flight", "Requests that have no full answer yet", registry=self.registry)
        gauge.set_function(read)

    def ended(self, path: str, status: int, seconds: float) -> None:
        """A request has had its answer."""
        self._seconds.labels(path).observe(seconds)
        self._answers.labels(path, status).inc()
