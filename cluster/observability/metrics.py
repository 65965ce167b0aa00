"""Names and meanings of the metrics that Ray exports to Prometheus; vLLM's names where it has the same thing.

Ray puts ``ray_`` in front of every name and ``_total`` behind a counter's, and adds its own tags (node, process, session).
"""

from __future__ import annotations

from typing import NamedTuple

LATENCY_BUCKETS_S = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0]


class Metric(NamedTuple):
    """One metric. ``kind`` is gauge, counter or histogram; ``tags`` are its own labels."""

    name: str
    kind: str
    description: str
    tags: tuple[str, ...] = ()


ENGINE_METRICS = (
    Metric("bireme_num_requests_running", "gauge", "Requests that own a sequence slot.", ("engine_id",)),
    Metric("bireme_num_requests_waiting", "gauge", "Requests that wait for a slot or for KV blocks.", ("engine_id",)),
    Metric(
        "bireme_num_tokens_running", "gauge", "Tokens of running requests: prompts, answers so far.", ("engine_id",)
    ),
    Metric(
        "bireme_num_tokens_waiting", "gauge", "Tokens of waiting requests: prompts, answers so far.", ("engine_id",)
    ),
    Metric("bireme_longest_wait_seconds", "gauge", "Time for which the first request has waited.", ("engine_id",)),
    Metric("bireme_kv_cache_free_tokens", "gauge", "Tokens of the KV cache that no request owns.", ("engine_id",)),
    Metric("bireme_engine_requests", "counter", "Requests that the engine took.", ("engine_id",)),
    Metric("bireme_kv_cache_usage_perc", "gauge", "Share of KV blocks that requests own, 0 to 1.", ("engine_id",)),
    Metric("bireme_prompt_tokens", "counter", "Prompt tokens of admitted requests.", ("engine_id",)),
    Metric("bireme_cached_prompt_tokens", "counter", "Prompt tokens found in the prefix cache.", ("engine_id",)),
    Metric("bireme_generation_tokens", "counter", "Tokens generated.", ("engine_id",)),
    Metric("bireme_num_preemptions", "counter", "Requests preempted for want of KV blocks.", ("engine_id",)),
    Metric("bireme_engine_steps", "counter", "Engine steps.", ("engine_id",)),
    Metric("bireme_engine_busy_seconds", "counter", "Time in which the engine had work.", ("engine_id",)),
    Metric("bireme_engine_device_seconds", "counter", "Time that its steps took on the device.", ("engine_id",)),
    Metric(
        "bireme_engine_start_seconds", "gauge", "What each stage of the engine's start took.", ("engine_id", "stage")
    ),
    Metric("bireme_model_received_bytes", "gauge", "Model files that came from another node's engine.", ("engine_id",)),
    Metric("bireme_model_received_seconds", "gauge", "What that took, from the first look on.", ("engine_id",)),
    Metric("bireme_model_sent_bytes", "counter", "Model files that went to other nodes.", ("engine_id",)),
    Metric("bireme_gpu_memory_bytes", "gauge", "GPU memory by what holds it, or is free.", ("engine_id", "use")),
)

INGRESS_METRICS = (
    Metric("bireme_requests_received", "counter", "Sequences asked for, those that were refused too."),
    Metric("bireme_request_arrivals_per_second", "gauge", "Sequences asked for a second, over about two seconds."),
    Metric("bireme_num_requests_held", "gauge", "Sequences that were taken and that no engine has yet."),
    Metric("bireme_signal_age_seconds", "gauge", "Age of the oldest word that it was decided from last.", ("decides",)),
    Metric(
        "bireme_time_to_first_token_target_requests",
        "counter",
        "Sequences by whether their first token came within ttft_target_s.",
        ("met",),
    ),
    Metric(
        "bireme_time_per_output_token_target_requests",
        "counter",
        "Sequences by whether the mean time between their tokens was within tpot_target_s.",
        ("met",),
    ),
    Metric("bireme_requests", "counter", "Sequences by how they ended.", ("finish_reason",)),
    Metric("bireme_request_attempts", "counter", "Submissions after the first, by cause.", ("cause",)),
    Metric("bireme_time_to_first_token_seconds", "histogram", "From receiving a request to its first token."),
    Metric("bireme_time_per_output_token_seconds", "histogram", "Mean time between the tokens of a request."),
    Metric("bireme_e2e_request_latency_seconds", "histogram", "From receiving a request to its last token."),
)

ROUTING_METRICS = (
    Metric(
        "bireme_routing_errors",
        "counter",
        "Choices of an engine in which the policy failed, by error.",
        ("policy", "error"),
    ),
)

CONTINUITY_METRICS = (
    Metric(
        "bireme_request_moves",
        "counter",
        "Requests that waited in a full engine and went to one with a place for them, or into another one's line.",
    ),
    Metric("bireme_request_handovers", "counter", "Requests continued elsewhere because their engine left on purpose."),
    Metric("bireme_drained_engines", "counter", "Engines seen to leave on purpose; each ingress counts those it uses."),
    Metric("bireme_fenced_messages", "counter", "Messages of attempts that were given up, dropped."),
    Metric("bireme_quarantined_requests", "counter", "Requests refused because engines died under them."),
    Metric("bireme_client_resumes", "counter", "Answers continued for a client whose connection had broken."),
    Metric("bireme_silent_engines", "counter", "Engines given up because nothing was heard from them."),
    Metric("bireme_recovery_seconds", "histogram", "From losing an attempt to the next token of the request."),
)

SPARE_METRICS = (
    Metric(
        "bireme_warm_spares", "gauge", "Processes that wait on the node for an engine, prepared, by kind.", ("kind",)
    ),
)
