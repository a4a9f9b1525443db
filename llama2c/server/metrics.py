"""/metrics: what the server and its engine do, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from ..engine.engine import Engine

NOW = ("running", "waiting", "cache_bytes", "prefix_bytes")  # of Stats; the others are counts since the start
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class EngineStats:
    """A collector that reads Engine.stats() when it is asked."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        for name, value in asdict(self._engine.stats()).items():
            kind = GaugeMetricFamily if name in NOW else CounterMetricFamily
            yield kind(f"llama2c_engine_{name}", f"Stats.{name} of the engine", value=value)


class Metrics:
    """The counters of one server."""

    def __init__(self, engine: Engine) -> None:
        registry = self._registry = CollectorRegistry()
        registry.register(EngineStats(engine))
        self.answers = Counter("llama2c_answers", "answers", ("route", "status"), registry=registry)
        self.disconnects = Counter("llama2c_disconnects", "requests whose client has gone before the end", registry=registry)
        self.prompt_tokens = Counter("llama2c_prompt_tokens", "tokens of prompts", registry=registry)
        self.cached_tokens = Counter("llama2c_cached_tokens", "tokens of prompts that were not computed", registry=registry)
        self.tokens = Counter("llama2c_completion_tokens", "tokens of answers", registry=registry)
        self.seconds = Histogram("llama2c_request_seconds", "from a request to its end", buckets=SECONDS, registry=registry)
        self.first = Histogram("llama2c_first_token_seconds", "up to the first token", buckets=SECONDS, registry=registry)

    def text(self) -> bytes:
        text: bytes = generate_latest(self._registry)
        return text
