"""Metrics of text generation, for Prometheus and $SRV.STATS."""

from collections import Counter as Counts
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram

from models.generation.types import Finished

FIRST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5)
STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 30)


class GenerationTelemetry:
    """Counts by model. Times in seconds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"mlbus_generate_{name}", help_text, ["model"], registry=registry, buckets=buckets)

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(f"mlbus_generate_{name}", help_text, ["model", *labels], registry=registry)

        self._first = histogram("ttft_seconds", "From receipt of a request to its first text, by model", FIRST_S)
        self._between = histogram("inter_token_seconds", "Between two pieces of one text, by model", BETWEEN_S)
        self._steps = histogram("step_seconds", "Duration of an engine's step, by model", STEP_S)
        self._prompt = counter("prompt_tokens", "Prompt tokens of ended completions, by model")
        self._cached = counter(
            "prefix_hit_tokens", "Prompt tokens of ended completions that were in the prefix cache, by model"
        )
        self._made = counter("completion_tokens", "Generated tokens of ended completions, by model")
        self._ended = counter("completions", "Ended completions, by model and finish reason", "reason")
        self._refused = counter(
            "refused", "Requests refused for a full queue or a deadline that it leaves no time for, by model"
        )
        self._counts: dict[str, Counts[str]] = {}

    def stepped(self, model: str, seconds: float) -> None:
        """An engine has made a step."""
        self._steps.labels(model).observe(seconds)

    def first(self, model: str, seconds: float) -> None:
        """The first piece of a request's text has come, this long after its receipt."""
        self._first.labels(model).observe(seconds)

    def went_on(self, model: str, seconds: float) -> None:
        """A later piece of a text has come, this long after the last."""
        self._between.labels(model).observe(seconds)

    def completed(self, model: str, finished: Finished) -> None:
        """A completion has ended."""
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
        """A request was refused: the queue was full, or too long for its deadline."""
        self._refused.labels(model).inc()
        self._counts.setdefault(model, Counts()).update(refused=1)

    def figures(self) -> Mapping[str, Mapping[str, int]]:
        """Totals since the start, by model."""
        return {model: dict(counts) for model, counts in self._counts.items()}
