"""Names, meanings and buckets of the metrics that vLLM has, under which dashboards, autoscalers and gateways look for them."""

from __future__ import annotations

FIRST_TOKEN_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0,
    2560.0,
)  # fmt: skip
BETWEEN_TOKENS_BUCKETS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0
)  # fmt: skip
REQUEST_BUCKETS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0,
    7680.0,
)  # fmt: skip
# vLLM's end with the model's length.
TOKENS_BUCKETS = tuple(m * 10**e for e in range(7) for m in (1, 2, 5) if m * 10**e <= 10**6)
CHOICES_BUCKETS = (1, 2, 5, 10, 20)
FINISHED_REASONS = ("stop", "length", "abort", "error")

GAUGES = {
    "vllm:num_requests_running": "Requests that own a sequence slot.",
    "vllm:num_requests_waiting": "Requests that wait for a slot or for KV blocks; those of no engine wait for one.",
    "vllm:kv_cache_usage_perc": "Share of the KV cache that requests own, 0 to 1.",
    "vllm:gpu_cache_usage_perc": "The same under its older name.",
}
COUNTERS = {
    "vllm:prompt_tokens": "Prompt tokens of admitted requests.",
    "vllm:generation_tokens": "Tokens generated.",
    "vllm:prefix_cache_queries": "Prompt tokens that were looked for in the prefix cache.",
    "vllm:prefix_cache_hits": "Prompt tokens found in the prefix cache.",
    "vllm:num_preemptions": "Requests preempted for want of KV blocks.",
}
HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": ("From receiving a request to its first token.", FIRST_TOKEN_BUCKETS_S),
    "vllm:inter_token_latency_seconds": ("Time between the deliveries of one request.", BETWEEN_TOKENS_BUCKETS_S),
    "vllm:time_per_output_token_seconds": ("The same under its older name.", BETWEEN_TOKENS_BUCKETS_S),
    "vllm:request_time_per_output_token_seconds": (
        "Mean time between the tokens of a request.",
        BETWEEN_TOKENS_BUCKETS_S,
    ),
    "vllm:e2e_request_latency_seconds": ("From receiving a request to its last token.", REQUEST_BUCKETS_S),
    "vllm:request_prefill_time_seconds": (
        "From a request's slot to its first token, in the engine.",
        REQUEST_BUCKETS_S,
    ),
    "vllm:request_inference_time_seconds": ("From a request's slot to its end.", REQUEST_BUCKETS_S),
    "vllm:request_decode_time_seconds": ("From a request's first token to its last.", REQUEST_BUCKETS_S),
    "vllm:request_params_max_tokens": ("Most tokens that a request may have.", TOKENS_BUCKETS),
    "vllm:request_params_n": ("Choices of each prompt of a request.", CHOICES_BUCKETS),
    "vllm:request_prompt_tokens": ("Prompt tokens of a request.", TOKENS_BUCKETS),
    "vllm:request_generation_tokens": ("Tokens generated for a request.", TOKENS_BUCKETS),
    "vllm:request_max_num_generation_tokens": ("Tokens of the longest choice of a prompt.", TOKENS_BUCKETS),
}
QUEUE_TIME = "vllm:request_queue_time_seconds", "From an engine's taking a request to its slot."
SUCCESS = "vllm:request_success", "Requests by how they ended."
CACHE_CONFIG = "vllm:cache_config_info", "What the KV cache of an engine is like; always 1."
