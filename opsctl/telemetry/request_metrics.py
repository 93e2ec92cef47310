"""What Prometheus is told of the requests that the page's own server answered."""

from typing import Any

METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST"})
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class RequestMetrics:
    """A counter and a histogram of this process alone."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram

        self._registry: Any = CollectorRegistry()
        self._requests = Counter(
            "opsctl_http_requests_total",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "opsctl_http_request_duration_seconds",
            "How long answers took.",
            ("route",),
            buckets=BUCKETS,
            registry=self._registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one. ``route`` is one of few: each is a series of its own."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def render(self) -> bytes:
        """Prometheus's text format, version 0.0.4."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry)
