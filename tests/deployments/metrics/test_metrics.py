"""What Prometheus reads after requests ran."""

from __future__ import annotations

import httpx
from prometheus_client.parser import text_string_to_metric_families

from cluster.metrics import ENGINE_METRICS, INGRESS_METRICS
from tests.deployments.conftest import KEYS, App, wait_for

# Ray exports a counter from its first event on, and here nothing is preempted, found in the cache or submitted twice; nor is
# there a GPU.
UNEVENTFUL = {
    "bireme_num_preemptions",
    "bireme_cached_prompt_tokens",
    "bireme_request_attempts",
    "bireme_gpu_memory_bytes",
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


def test_metrics_need_a_key(app: App):
    assert httpx.get(f"{app.url}/metrics").status_code == 401
