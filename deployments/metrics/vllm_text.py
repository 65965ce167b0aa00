"""vLLM's metrics in Prometheus text, out of what engines say of themselves and one ingress measured.

Ray's agent would put ``ray_`` in front of the names, under which nobody looks for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from cluster.observability.vllm_metrics import (
    CACHE_CONFIG,
    COUNTERS,
    FINISHED_REASONS,
    GAUGES,
    HISTOGRAMS,
    QUEUE_TIME,
    REQUEST_BUCKETS_S,
    SUCCESS,
)
from cluster.outputs import EngineLoad
from deployments.metrics.request_totals import RequestTotals


class VllmFamilies(NamedTuple):
    """Families whose values change no more, so that they may be written on another thread, which takes longer than to collect
    them."""

    families: Sequence[Metric] = ()

    def collect(self) -> Sequence[Metric]:
        """As Prometheus's client wants them."""
        return self.families

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self) if self.families else b""


class VllmMetrics(NamedTuple):
    """At one moment. Series of an engine have the label ``engine``, and are the same whichever ingress tells them; those that an
    ingress measured have its name, so that a scraper that meets one after the other does not mix their counters.

    Attributes:
        model_name: label of all.
        loads: by engine id.
        block_size: of the engines' caches.
        ingress: name of this one.
        totals: of its requests.
        num_held: sequences that it took and that no engine has yet.
    """

    model_name: str
    loads: Mapping[str, EngineLoad]
    block_size: int
    ingress: str
    totals: RequestTotals
    num_held: int

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return VllmFamilies(list(self.collect())).text()

    def collect(self) -> Iterator[Metric]:
        """The families, as Prometheus's client wants them."""
        yield from self._of_engines()
        yield from self._of_requests()

    def _of_engines(self) -> Iterator[Metric]:
        labels = ["model_name", "engine"]
        for name, help_text in GAUGES.items():
            gauge = GaugeMetricFamily(name, help_text, labels=labels)
            for engine, load in self.loads.items():
                gauge.add_metric([self.model_name, engine], _gauge(name, load))
            if name == "vllm:num_requests_waiting":
                # What scales an application up from nothing must be there while there is no engine.
                gauge.add_metric([self.model_name, ""], self.num_held)
            yield gauge
        for name, help_text in COUNTERS.items():
            counter = CounterMetricFamily(name, help_text, labels=labels)
            for engine, load in self.loads.items():
                counter.add_metric([self.model_name, engine], _counter(name, load))
            yield counter
        waits = HistogramMetricFamily(*QUEUE_TIME, labels=labels)
        for engine, load in self.loads.items():
            if load.queue_time_counts:
                buckets = _cumulated(REQUEST_BUCKETS_S, load.queue_time_counts)
                waits.add_metric([self.model_name, engine], buckets, load.queue_time_s)
        yield waits
        cache = GaugeMetricFamily(*CACHE_CONFIG, labels=[*labels, "block_size", "num_gpu_blocks"])
        for engine, load in self.loads.items():
            blocks = load.kv_tokens // self.block_size
            cache.add_metric([self.model_name, engine, str(self.block_size), str(blocks)], 1)
        yield cache

    def _of_requests(self) -> Iterator[Metric]:
        labels, values = ["model_name", "ingress"], [self.model_name, self.ingress]
        totals = self.totals
        found = {
            "vllm:time_to_first_token_seconds": totals.first_token,
            "vllm:inter_token_latency_seconds": totals.between_tokens,
            "vllm:time_per_output_token_seconds": totals.between_tokens,
            "vllm:request_time_per_output_token_seconds": totals.mean_between_tokens,
            "vllm:e2e_request_latency_seconds": totals.whole,
            "vllm:request_prefill_time_seconds": totals.prefill,
            "vllm:request_inference_time_seconds": totals.inference,
            "vllm:request_decode_time_seconds": totals.decode,
            "vllm:request_params_max_tokens": totals.max_tokens,
            "vllm:request_params_n": totals.num_choices,
            "vllm:request_prompt_tokens": totals.prompt_tokens,
            "vllm:request_generation_tokens": totals.generation_tokens,
            "vllm:request_max_num_generation_tokens": totals.longest_generation_tokens,
        }
        for name, (help_text, bounds) in HISTOGRAMS.items():
            family = HistogramMetricFamily(name, help_text, labels=labels)
            family.add_metric(values, _cumulated(bounds, found[name].counts), found[name].total)
            yield family
        ended = CounterMetricFamily(*SUCCESS, labels=[*labels, "finished_reason"])
        for reason in dict.fromkeys((*FINISHED_REASONS, *totals.ended)):
            ended.add_metric([*values, reason], totals.ended[reason])
        yield ended


def _gauge(name: str, load: EngineLoad) -> float:
    if name == "vllm:num_requests_running":
        return load.num_running
    if name == "vllm:num_requests_waiting":
        return load.num_waiting
    return 1 - load.free_kv_tokens / load.kv_tokens if load.kv_tokens else 0.0


def _counter(name: str, load: EngineLoad) -> int:
    return {
        "vllm:prompt_tokens": load.num_prompt_tokens,
        "vllm:generation_tokens": load.num_generated_tokens,
        "vllm:prefix_cache_queries": load.num_prompt_tokens,
        "vllm:prefix_cache_hits": load.num_cached_prompt_tokens,
        "vllm:num_preemptions": load.num_preemptions,
    }[name]


def _cumulated(bounds: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """Prometheus's buckets count what smaller ones do, too."""
    buckets, so_far = [], 0
    for bound, count in zip((*map(float, bounds), None), counts):
        so_far += count
        buckets.append(("+Inf" if bound is None else repr(bound), float(so_far)))
    return buckets
