"""vLLM's metrics: names, labels and units, read by Prometheus's own parser."""

from __future__ import annotations

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.observability.histogram import Histogram
from cluster.observability.vllm_metrics import COUNTERS, GAUGES, HISTOGRAMS, REQUEST_BUCKETS_S
from cluster.outputs import EngineLoad
from deployments.metrics.ingress_metrics import IngressMetrics, SequenceTimes
from deployments.metrics.vllm_text import VllmMetrics

LOAD = EngineLoad(
    free=8, max_queued=8, num_running=3, num_waiting=2, kv_tokens=1600, free_kv_tokens=1200, num_prompt_tokens=70,
    num_cached_prompt_tokens=32, num_generated_tokens=11, num_preemptions=1,
    queue_time_counts=(4, *[0] * (len(REQUEST_BUCKETS_S) - 1), 1), queue_time_s=7000.5,
)  # fmt: skip


def samples(metrics: VllmMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = list(text_string_to_metric_families(metrics.text().decode()))
    assert all(family.type != "unknown" for family in families)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def text_of(loads: dict[str, EngineLoad], metrics: IngressMetrics, num_held: int = 0) -> VllmMetrics:
    return VllmMetrics("model", loads, 16, "ingress-1", metrics.totals, num_held)


def test_engines_are_told_as_they_tell_themselves():
    found = samples(text_of({"a": LOAD, "b": EngineLoad(4, 8)}, IngressMetrics(), num_held=5))

    def of(name: str, engine: str = "a", **labels: str) -> float:
        return found[name, tuple(sorted({"model_name": "model", "engine": engine, **labels}.items()))]

    assert (of("vllm:num_requests_running"), of("vllm:num_requests_waiting")) == (3, 2)
    assert of("vllm:num_requests_waiting", "") == 5
    assert of("vllm:kv_cache_usage_perc") == of("vllm:gpu_cache_usage_perc") == 0.25
    assert of("vllm:kv_cache_usage_perc", "b") == 0
    assert (of("vllm:prompt_tokens_total"), of("vllm:generation_tokens_total")) == (70, 11)
    assert (of("vllm:prefix_cache_queries_total"), of("vllm:prefix_cache_hits_total")) == (70, 32)
    assert of("vllm:num_preemptions_total") == 1
    assert of("vllm:cache_config_info", block_size="16", num_gpu_blocks="100") == 1
    assert (
        of("vllm:request_queue_time_seconds_bucket", le="0.3")
        == of("vllm:request_queue_time_seconds_bucket", le="7680.0")
        == 4
    )
    assert of("vllm:request_queue_time_seconds_bucket", le="+Inf") == of("vllm:request_queue_time_seconds_count") == 5
    assert of("vllm:request_queue_time_seconds_sum") == 7000.5


def test_requests_are_counted_where_they_were_answered():
    metrics = IngressMetrics()
    for first_s, num_tokens in ((0.07, 5), (0.3, 1)):
        times = SequenceTimes(metrics, 100.0, num_prompt_tokens=7)
        times.first, times.last = 100.0 + first_s, 100.0 + first_s + 0.06 * (num_tokens - 1)
        times.finished("length", num_tokens)
    left = SequenceTimes(metrics, time.monotonic())
    left.is_counted = True
    left.given_up(failed=False)
    found = samples(text_of({}, metrics))

    def of(name: str, **labels: str) -> float:
        return found[name, tuple(sorted({"model_name": "model", "ingress": "ingress-1", **labels}.items()))]

    reasons = {
        reason: of("vllm:request_success_total", finished_reason=reason)
        for reason in ("stop", "length", "abort", "error")
    }
    assert reasons == {"stop": 0, "length": 2, "abort": 1, "error": 0}
    name = "vllm:time_to_first_token_seconds"
    assert [of(name + "_bucket", le=le) for le in ("0.06", "0.08", "0.25", "0.5", "+Inf")] == [0, 1, 1, 2, 2]
    assert of(name + "_sum") == pytest.approx(0.37)
    assert of("vllm:request_time_per_output_token_seconds_sum") == pytest.approx(0.06)
    assert of("vllm:request_time_per_output_token_seconds_count") == 1
    assert of("vllm:request_prompt_tokens_sum") == 14 and of("vllm:request_generation_tokens_sum") == 6
    assert of("vllm:e2e_request_latency_seconds_count") == 2
    assert of("vllm:request_decode_time_seconds_sum") == pytest.approx(0.24)
    metrics.observe_engine(scheduled=5.0, first_step=5.25, ended=6.0)
    found.update(samples(text_of({}, metrics)))
    assert of("vllm:request_prefill_time_seconds_sum") == 0.25
    assert of("vllm:request_inference_time_seconds_sum") == 1.0
    metrics.count_params(max_tokens=16, num_choices=3)
    found.update(samples(text_of({}, metrics)))
    assert (of("vllm:request_params_max_tokens_sum"), of("vllm:request_params_n_sum")) == (16, 3)
    for name in HISTOGRAMS:
        assert of(name + "_bucket", le="+Inf") == of(name + "_count")


def test_each_delivery_after_the_first_is_timed():
    metrics = IngressMetrics()
    times = SequenceTimes(metrics, time.monotonic())
    for has_tokens in (True, True, True, False):
        times.arrived(has_tokens)
    assert sum(metrics.totals.between_tokens.counts) == 2


def test_every_name_is_there_before_anything_happened():
    names = {name for name, _ in samples(text_of({"a": LOAD}, IngressMetrics()))}
    expected = {
        *GAUGES,
        *(f"{name}_total" for name in COUNTERS),
        *(f"{name}_{end}" for name in HISTOGRAMS for end in ("sum", "count")),
    }
    assert expected | {"vllm:request_success_total"} <= names


def test_a_value_on_a_bound_is_in_its_bucket():
    histogram = Histogram((1, 2))
    for value in (0, 1, 1.5, 2, 3):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1] and histogram.total == 7.5
