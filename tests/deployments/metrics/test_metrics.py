"""What Prometheus reads after requests ran."""

from __future__ import annotations

import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

from cluster.config import DEFAULT_MODEL
from cluster.observability.metrics import ENGINE_METRICS, INGRESS_METRICS
from tests.deployments.conftest import KEYS, App, wait_for

# Ray exports a counter from its first event on, and here nothing is preempted, found in the cache or submitted twice; nor is
# there a GPU, or another node.
UNEVENTFUL = {
    "bireme_num_preemptions",
    "bireme_cached_prompt_tokens",
    "bireme_request_attempts",
    "bireme_gpu_memory_bytes",
    "bireme_model_received_bytes",
    "bireme_model_received_seconds",
    "bireme_model_sent_bytes",
}


def samples(app: App, engine_id: str) -> dict[tuple[str, str], float]:
    """Value by (name, finish reason) of the project's metrics, of ``engine_id`` and of all ingresses."""
    response = httpx.get(f"{app.url}/metrics", headers={"Authorization": f"Bearer {KEYS[0]}"}, timeout=30)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("text/plain")
    found: dict[tuple[str, str], float] = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            if sample.name.startswith("ray_bireme_") and sample.labels.get("engine_id", engine_id) == engine_id:
                key = sample.name.removesuffix("_total"), sample.labels.get("finish_reason", "")
                found[key] = found.get(key, 0) + sample.value
    return found


def test_metrics_count_what_was_served(app: App):
    stats = app.wait_until_idle()
    generated, engine_id = stats["num_generated_tokens"], stats["engine_id"]
    before = samples(app, engine_id)
    with app.client() as client:
        answer = client.complete("Once upon a time", max_tokens=8, ignore_eos=True)
    assert answer.usage.completion_tokens == 8
    assert app.wait_until_idle()["num_generated_tokens"] == generated + 8

    ended = "ray_bireme_requests", "length"
    kinds = ("time_to_first_token", "time_per_output_token", "e2e_request_latency")
    latencies = [(f"ray_bireme_{kind}_seconds_count", "") for kind in kinds]

    def rise(name: str, finish_reason: str = "") -> float:
        key = f"ray_{name}", finish_reason
        return after.get(key, 0) - before.get(key, 0)

    def arrived() -> dict | None:
        found = samples(app, engine_id)
        # Those of the ingress and of the engine come at times of their own.
        rises = {name: found.get(name, 0) - before.get(name, 0) for name in (ended, *latencies)}
        return (
            found
            if min(rises.values()) > 0 and found.get(("ray_bireme_generation_tokens", "")) == generated + 8
            else None
        )

    after = wait_for(arrived, 40, "the tokens are not in the metrics")
    # Metrics are some seconds old, so what tests before this one did may arrive too; the engine's count above is exact.
    assert 0 < rise("bireme_time_to_first_token_seconds_sum") < rise("bireme_e2e_request_latency_seconds_sum")
    assert after["ray_bireme_num_requests_running", ""] == 0
    assert 0 <= after["ray_bireme_kv_cache_usage_perc", ""] <= 1
    for metric in (*ENGINE_METRICS, *INGRESS_METRICS):
        assert any(name.startswith(f"ray_{metric.name}") for name, _ in after) or metric.name in UNEVENTFUL
    assert after["ray_bireme_kv_cache_free_tokens", ""] > 0 == after["ray_bireme_num_tokens_waiting", ""]
    with app.client() as client:
        load = client.status()["load"]
    assert load["num_arrived"] >= 1 and load["ttft"]["num_met"] >= 1 <= load["tpot"]["num_met"]
    assert (load["num_running"], load["num_held"]) == (0, 0)
    (engine,) = load["engines"].values()
    assert engine["age_s"] < 0.5 * 5 and engine["num_waiting"] == 0 < engine["free_kv_tokens"] == engine["kv_tokens"]


def vllm_samples(app: App) -> dict[str, float]:
    """Sums by name, from a scrape that asks nobody else."""
    response = httpx.get(f"{app.url}/metrics?only=vllm", headers={"Authorization": f"Bearer {KEYS[0]}"}, timeout=30)
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(response.text):
        assert family.name.startswith("vllm:")
        for sample in family.samples:
            assert sample.labels["model_name"] == DEFAULT_MODEL
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def test_vllms_names_count_what_was_served(app: App):
    app.wait_until_idle()
    time.sleep(1)  # engines tell four times a second
    before = vllm_samples(app)
    with app.client() as client:
        answer = client.complete("Twice upon a time", max_tokens=8, ignore_eos=True)
    generated = before["vllm:generation_tokens_total"] + 8
    after = wait_for(
        lambda: (found := vllm_samples(app))["vllm:generation_tokens_total"] >= generated and found, 10, "no tokens"
    )
    rises = {name: after[name] - before[name] for name in after}
    assert rises["vllm:generation_tokens_total"] == rises["vllm:request_generation_tokens_sum"] == 8
    assert rises["vllm:prompt_tokens_total"] == rises["vllm:request_prompt_tokens_sum"] == answer.usage.prompt_tokens
    for name in ("e2e_request_latency", "time_to_first_token", "request_queue_time", "request_time_per_output_token"):
        assert rises[f"vllm:{name}_seconds_count"] == 1, name
    assert 0 <= rises["vllm:request_queue_time_seconds_sum"] <= rises["vllm:time_to_first_token_seconds_sum"] + 0.001
    assert rises["vllm:time_to_first_token_seconds_sum"] < rises["vllm:e2e_request_latency_seconds_sum"]
    assert 1 <= rises["vllm:inter_token_latency_seconds_count"] <= 7
    assert rises["vllm:request_success_total"] == 1
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
    # Of the choices of one prompt the longest counts, once.
    with app.client() as client:
        client.complete(["Thrice upon a time", "Now"], n=2, max_tokens=4, ignore_eos=True)
    longest = "vllm:request_max_num_generation_tokens"
    more = vllm_samples(app)
    assert (more[f"{longest}_count"] - after[f"{longest}_count"], more[f"{longest}_sum"] - after[f"{longest}_sum"]) == (
        2,
        8,
    )
    assert (rises[f"{longest}_count"], rises[f"{longest}_sum"]) == (1, 8)
    assert 0 <= after["vllm:kv_cache_usage_perc"] <= 1


def test_parts_of_the_metrics_can_be_had_alone(app: App):
    def names(only: str) -> set[str]:
        headers = {"Authorization": f"Bearer {KEYS[0]}"}
        response = httpx.get(f"{app.url}/metrics", params={"only": only} if only else {}, headers=headers, timeout=30)
        assert response.status_code == 200, response.text
        return {family.name for family in text_string_to_metric_families(response.text)}

    parts = {only: names(only) for only in ("vllm", "bireme", "ray")}
    assert all(name.startswith("vllm:") for name in parts["vllm"])
    assert parts["bireme"] and all(name.startswith("ray_bireme_") for name in parts["bireme"])
    assert parts["ray"] and not any(name.startswith(("ray_bireme_", "vllm:")) for name in parts["ray"])
    whole = names("")
    assert all(part & whole for part in parts.values())
    refused = httpx.get(f"{app.url}/metrics?only=all", headers={"Authorization": f"Bearer {KEYS[0]}"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "only")


def test_metrics_need_a_key(app: App):
    assert httpx.get(f"{app.url}/metrics").status_code == 401
