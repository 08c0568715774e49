"""Metrics for Prometheus, under the names that dashboards of vLLM query."""

import itertools
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenspeed.completion import Completion
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.metrics import HOST_BOUNDS
from tokenspeed.server import answers
from tokenspeed.server.ceiling import Ceiling
from tokenspeed.server.defaults import METRICS_PREFIX
from tokenspeed.server.service import Service

LABEL = "model_name"
SHORT = (
    0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2,
    0.3, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""Upper bounds in seconds of what one token takes."""
LONG = (
    0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0,
)  # fmt: skip
"""Of a request's spans."""


class Metrics:
    """Counts and times of requests, and at each look those of the engine.

    Args:
        service: whose they are. prefix: of all names, before a colon.
    """

    def __init__(self, service: Service, prefix: str = METRICS_PREFIX):
        self._registry = registry = CollectorRegistry()
        self._model = service.name

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(f"{prefix}:{name}", what, [LABEL, *labels], registry=registry)

        def histogram(name: str, what: str, bounds: Sequence[float]) -> Histogram:
            return Histogram(f"{prefix}:{name}", what, [LABEL], buckets=bounds, registry=registry)

        self._prompt_tokens = counter("prompt_tokens", "Tokens of prompts")
        self._cached_tokens = counter("prompt_tokens_cached", "Tokens of prompts whose keys were in the cache")
        self._tokens = counter("generation_tokens", "Tokens that were generated")
        self._ended = counter("request_success", "Requests that ended by themselves", "finished_reason")
        self._corrupted = counter("corrupted_requests", "Requests whose logits were not finite")
        self._first = histogram("time_to_first_token_seconds", "From a request to its first token", LONG)
        self._between = histogram("inter_token_latency_seconds", "Between two tokens", SHORT)
        self._each = histogram("request_time_per_output_token_seconds", "Decode's seconds by its tokens", SHORT)
        self._whole = histogram("e2e_request_latency_seconds", "From a request to its end", LONG)
        self._queue = histogram("request_queue_time_seconds", "Before a request's prefill", LONG)
        self._prefill = histogram("request_prefill_time_seconds", "From there to its first token", LONG)
        self._decode = histogram("request_decode_time_seconds", "From there to its last", LONG)
        registry.register(_OfTheEngine(service, prefix))

    def first_token(self, seconds: float) -> None:
        """A request's first, after so long."""
        self._first.labels(self._model).observe(seconds)

    def next_token(self, seconds: float, count: int) -> None:
        """So many came together, so long after those before."""
        for _ in range(count):
            self._between.labels(self._model).observe(seconds / count)

    def ended(self, samples: Sequence[Completion], seconds: float) -> None:
        """A request with all its samples, that took so long."""
        model, usage = self._model, answers.usage_of(list(samples))
        self._prompt_tokens.labels(model).inc(usage["prompt_tokens"])
        self._cached_tokens.labels(model).inc(usage["prompt_tokens_details"]["cached_tokens"])
        self._tokens.labels(model).inc(usage["completion_tokens"])
        self._whole.labels(model).observe(seconds)
        for one in samples:
            timings = one.timings
            self._ended.labels(model, one.finish_reason).inc()
            self._queue.labels(model).observe(timings.queue_s)
            self._prefill.labels(model).observe(timings.ttft_s - timings.queue_s)
            self._decode.labels(model).observe(timings.decode_s)
            if timings.decode_steps:
                self._each.labels(model).observe(timings.decode_s / timings.decode_steps)

    def corrupted(self) -> None:
        """A request ended since its logits were not finite."""
        self._corrupted.labels(self._model).inc()

    def text(self) -> bytes:
        """In Prometheus's format."""
        return generate_latest(self._registry)


class _OfTheEngine(Collector):
    """What the engine itself counts, asked for when somebody looks."""

    def __init__(self, service: Service, prefix: str):
        self._service, self._prefix = service, prefix

    def collect(self) -> Iterator[Metric]:
        service = self._service
        yield self._counter(
            "admission_rejections", "Requests that were told to come again", service.admission.rejections
        )
        if (engine := service.engine) is None:
            return
        for name, what, value in _gauges(engine):
            yield self._gauge(name, what, value)
        for name, what, value in _counters(engine):
            yield self._counter(name, what, value)
        what = "Programs that were compiled, or read from a cache, since it was ready"
        yield self._counter("compilations_since_ready", what, service.compilations.count)
        yield self._host_times(engine)
        if service.ceiling is not None:
            for name, what, value in _of_the_ceiling(engine, service.ceiling):
                yield self._gauge(name, what, value, source=service.ceiling.source)

    def _gauge(self, name: str, what: str, value: float, **labels: str) -> Metric:
        gauge = GaugeMetricFamily(f"{self._prefix}:{name}", what, labels=[LABEL, *labels])
        gauge.add_metric([self._service.name, *labels.values()], value)
        return gauge

    def _host_times(self, engine: Engine) -> Metric:
        counts = itertools.accumulate(engine.metrics.host_counts)
        buckets = list(zip([*map(str, HOST_BOUNDS), "+Inf"], counts))
        times = HistogramMetricFamily(
            f"{self._prefix}:engine_step_host_seconds", "Seconds of the host for a step", labels=[LABEL]
        )
        times.add_metric([self._service.name], buckets, engine.metrics.host_s)
        return times

    def _counter(self, name: str, what: str, value: float) -> Metric:
        counter = CounterMetricFamily(f"{self._prefix}:{name}", what, labels=[LABEL])
        counter.add_metric([self._service.name], value)
        return counter


def _gauges(engine: Engine) -> list[tuple[str, str, float]]:
    scheduler = engine.scheduler
    return [
        ("num_requests_running", "Samples under way", len(scheduler.running)),
        ("num_requests_waiting", "Samples that wait for pages or a row", len(scheduler.waiting)),
        ("kv_cache_usage_perc", "Share of the pages that are in use, 0 to 1", engine.pool.occupancy),
        ("compiled_programs", "Programs that the engine has", engine.runner.programs),
    ]


def _of_the_ceiling(engine: Engine, ceiling: Ceiling) -> Iterator[tuple[str, str, float]]:
    yield "read_ceiling_bytes_per_second", "At which the device's memory can be read", ceiling.bytes_per_s
    if (rate := engine.metrics.read_bytes_per_s) is not None:
        what = "Share of it that the last steps of decode alone read, weights and cache"
        yield "decode_read_ceiling_ratio", what, rate / ceiling.bytes_per_s


def _counters(engine: Engine) -> list[tuple[str, str, float]]:
    stats, metrics = engine.pool.stats, engine.metrics
    return [
        ("num_preemptions", "Samples that lost their pages to others", engine.scheduler.preemptions),
        ("prefix_cache_queries", "Tokens that were looked for in the cache", stats.queried_tokens),
        ("prefix_cache_hits", "Those that were found", stats.hit_tokens),
        ("engine_steps", "Steps that were started", metrics.steps),
        ("engine_host_seconds", "Seconds of steps in which the host was busy", metrics.host_s),
        ("decode_steps", "Steps of decode alone, whose time is known", metrics.decode_steps),
        ("decode_step_seconds", "Seconds that they took", metrics.decode_s),
        ("decode_read_bytes", "Weights and cache that they had to read", metrics.decode_bytes),
        ("engine_wait_seconds", "Seconds of steps in which it waited for the device", metrics.wait_s),
    ]
