"""What is counted, in a registry of its own, and the line that is logged of a request."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

QUIET = ("/health", "/ready", "/metrics")
"""Asked every few seconds by whatever watches a server: not logged."""
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics(Collector):
    """Requests as the front sees them; of the backend, what it says when it is asked."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.registry = CollectorRegistry()
        self.requests = Counter("diffulm_requests", "Requests", ["route", "status"], registry=self.registry)
        self.tokens = Counter("diffulm_completion_tokens", "New tokens that were sent", registry=self.registry)
        self.first = Histogram(
            "diffulm_first_text_seconds", "Until the first text", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.whole = Histogram(
            "diffulm_request_seconds", "Until the end", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        backend = self.backend
        yield GaugeMetricFamily("diffulm_ready", "1: the model is there", float(backend.ready))
        yield GaugeMetricFamily("diffulm_waiting", "Texts that wait for their turn", backend.waiting)
        yield GaugeMetricFamily("diffulm_running", "Texts that are computed", backend.running)
        for name, words in {
            "forwards": "Forwards of the model",
            "rows": "Rows of all forwards; by forwards: how full they were",
            "reused": "Columns of prompts that were not computed again",
            "restarts": "Workers started again after one died",
        }.items():
            yield CounterMetricFamily(f"diffulm_{name}", words, backend.stats.get(name, 0))

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def done(self, method: str, route: str, status: int, began: float, state: dict[str, Any]) -> None:
        """Count and log one request. state: what its handler noted: tokens, first, said."""
        seconds, tokens = time.perf_counter() - began, state.get("tokens", 0)
        self.requests.labels(route, str(status)).inc()
        self.tokens.inc(tokens)
        self.whole.labels(route).observe(seconds)
        if (first := state.get("first")) is not None:
            self.first.labels(route).observe(first - began)
        if route in QUIET:
            return
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {method} {route} {status} {seconds:.3f} s {tokens} tokens"
        with contextlib.suppress(OSError):  # nobody is there to read it
            print(line, *state.get("said", ()), file=sys.stderr, flush=True)
