"""vLLM's names and values of settings: what they are called here, and what to use instead of those that are nothing here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Elsewhere(NamedTuple):
    """A name that is no setting here.

    Attributes:
        instead: what to use.
        same: values that say what is so here anyway; they are left out.
    """

    instead: str
    same: tuple[Any, ...] = (None,)


# A setting of the command line alone: it goes into deployment_config.
NUM_REPLICAS = "num_replicas"
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "served_model_name": "model_id",
        "num_gpu_blocks_override": "num_kv_blocks",
        "max_seq_len": "max_model_len",
        "data_parallel_size": NUM_REPLICAS,
        "async_scheduling": "enable_overlap_schedule",
    }
)
# As one letter or two behind one dash.
SHORT: Mapping[str, str] = MappingProxyType(
    {
        "dp": "data_parallel_size",
        "tp": "tensor_parallel_size",
        "pp": "pipeline_parallel_size",
        "q": "quantization",
        "O": "optimization_level",
    }
)
# Values by our name of the setting, that are called otherwise here or are what is done anyway.
VALUES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("dtype", "half"): "float16",
        ("dtype", "float"): "float32",
        ("generation_config", "vllm"): "none",
        ("logprobs_mode", "raw_logprobs"): "raw",
        ("logprobs_mode", "processed_logprobs"): "processed",
        **{("load_format", name): "auto" for name in ("safetensors", "hf", "gguf")},
    }
)
ONE_DEVICE = "an engine computes on one device; num_replicas (of deployment_config) says how many engines there are"
ADAPTERS = "adapters are not supported; merge them into the model"
_PARSERS = "tool_call_parser and reasoning_parser say what is looked for"
_VISION = "models that see or hear are not supported"
_EXPERTS = "mixtures of experts are not supported"
_REVISION = "download the revision, and give its directory as the model"
_FILES = "the model's files say so; change them, and give their directory as the model"
_GRAPHS = "the nearest are enforce_eager and decode_graph_memory_gb"
_KERNELS = "kernels are chosen by the device; batch_invariant chooses those whose results do not depend on the batch"
ELSEWHERE: Mapping[str, Elsewhere] = {
    "quantization": Elsewhere("the nearest is a GGUF file as model, which says itself how its weights are stored"),
    "kv_cache_memory_bytes": Elsewhere("the nearest is kv_cache_memory_gb, in GiB"),
    **dict.fromkeys(
        ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size",
         "decode_context_parallel_size"),
        Elsewhere(ONE_DEVICE, (None, 1)),
    ),
    "data_parallel_size_local": Elsewhere(ONE_DEVICE, (None, 1)),
    "data_parallel_backend": Elsewhere(ONE_DEVICE, (None, "ray", "mp")),
    # With one device there is nothing to distribute.
    "distributed_executor_backend": Elsewhere(ONE_DEVICE, (None, "ray", "mp", "uni")),
    "enable_chunked_prefill": Elsewhere(
        "long prompts are always prefilled in chunks; max_num_batched_tokens is their size", (None, True)
    ),
    "trust_remote_code": Elsewhere(
        "code that comes with a model is never run; docs/models.md has the architectures", (None, False)
    ),
    "kv_cache_dtype": Elsewhere("the nearest is dtype, the type of weights and KV cache", (None, "auto")),
    "scheduling_policy": Elsewhere(
        "the nearest is oldest_first_every; requests have the field priority", (None, "fcfs", "priority")
    ),
    "enable_lora": Elsewhere(ADAPTERS, (None, False)),
    **dict.fromkeys(
        ("max_loras", "max_lora_rank", "max_cpu_loras", "lora_modules", "lora_dtype", "fully_sharded_loras",
         "default_mm_loras", "lora_extra_vocab_size"),
        Elsewhere(ADAPTERS, (None, False)),
    ),
    **dict.fromkeys(("enable_auto_tool_choice", "enable_reasoning"), Elsewhere(_PARSERS, (None, False, True))),
    "tool_parser_plugin": Elsewhere("parsers are this project's own; leave it out", (None, "")),
    **dict.fromkeys(
        ("limit_mm_per_prompt", "mm_processor_kwargs", "media_io_kwargs", "mm_processor_cache_gb", "allowed_local_media_path",
         "mm_encoder_tp_mode", "interleave_mm_strings", "skip_mm_profiling", "enable_mm_embeds"),
        Elsewhere(_VISION, (None, False, {}, 0, "")),
    ),
    **dict.fromkeys(
        ("enable_expert_parallel", "enable_eplb", "eplb_config", "num_redundant_experts", "all2all_backend"),
        Elsewhere(_EXPERTS, (None, False, 0)),
    ),
    **dict.fromkeys(("revision", "code_revision", "tokenizer_revision"), Elsewhere(_REVISION)),
    **dict.fromkeys(("hf_overrides", "rope_scaling", "rope_theta", "hf_config_path", "override_generation_config"),
                    Elsewhere(_FILES, (None, {}))),
    **dict.fromkeys(("compilation_config", "cudagraph_capture_sizes", "cuda_graph_sizes", "max_cudagraph_capture_size",
                     "optimization_level"), Elsewhere(_GRAPHS)),
    **dict.fromkeys(("attention_backend", "attention_config", "disable_sliding_window"), Elsewhere(_KERNELS, (None, False))),
    "speculative_config": Elsewhere("speculative decoding is not supported; leave it out"),
    "kv_transfer_config": Elsewhere("engines do not pass their KV cache on; leave it out"),
    "kv_events_config": Elsewhere("engines do not publish their KV cache; leave it out"),
    "cpu_offload_gb": Elsewhere("weights are not offloaded; a smaller model or a GGUF file needs less memory", (None, 0)),
    "enable_sleep_mode": Elsewhere(
        "deployment_config.autoscaling_config.min_replicas 0 lets engines go, and the next request starts one", (None, False)
    ),
    "enable_prompt_embeds": Elsewhere("prompts are text or token ids", (None, False)),
    "chat_template": Elsewhere(
        "the model's own is used; trust_request_chat_template lets requests bring one"
    ),
    "tokenizer_mode": Elsewhere("the tokenizer is read from the model's files", (None, "auto", "hf")),
    "skip_tokenizer_init": Elsewhere("the API needs the tokenizer", (None, False)),
    "hf_token": Elsewhere("set HF_TOKEN where Ray is started; settings are logged"),
    "download_dir": Elsewhere("set BIREME_CACHE where Ray is started"),
    "seed": Elsewhere(
        "requests have a seed of their own; one without it gets one, which its answer tells; dummy_seed is of random weights",
        (None, 0),
    ),
    "task": Elsewhere("models generate text", (None, "auto", "generate")),
    "runner": Elsewhere("models generate text", (None, "auto", "generate")),
    "convert": Elsewhere("models generate text", (None, "auto", "none")),
    "model_impl": Elsewhere("models are this project's own: docs/models.md", (None, "auto", "vllm")),
    "config_format": Elsewhere("files are recognised by what they hold", (None, "auto", "hf")),
    "model_loader_extra_config": Elsewhere("loading has no options; leave it out", (None, {})),
    "additional_config": Elsewhere("there are no plug-ins; leave it out", (None, {})),
    "stream_interval": Elsewhere("tokens leave with the step that made them; leave it out", (None, 1)),
    "logits_processors": Elsewhere("requests have logit_bias, bad_words and allowed_token_ids"),
    "max_logprobs": Elsewhere("the API allows 20 alternatives; leave it out", (None, *range(21))),
    "worker_cls": Elsewhere("workers are this project's own; leave it out", (None, "auto")),
    "worker_extension_cls": Elsewhere("workers are this project's own; leave it out", (None, "")),
    **dict.fromkeys(("data_parallel_address", "data_parallel_rpc_port", "data_parallel_rank", "data_parallel_start_rank"),
                    Elsewhere(ONE_DEVICE)),
    **dict.fromkeys(("nnodes", "node_rank", "master_addr", "master_port", "headless"),
                    Elsewhere("nodes join with ray start: docs/operate.md", (None, False))),
    **dict.fromkeys(("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "enable_ssl_refresh"),
                    Elsewhere("TLS ends at a proxy in front: docs/operate.md", (None, False, 0))),
    **dict.fromkeys(("allow_credentials", "allowed_methods", "allowed_headers"),
                    Elsewhere("the nearest is allowed_origins", (None, False))),
    "root_path": Elsewhere("route_prefix in the Serve config is the path that the API is under", (None, "")),
    "uds": Elsewhere("the API listens on host and port", (None, "")),
    "middleware": Elsewhere("there are no plug-ins; leave it out", (None, [])),
    "config": Elsewhere("a Serve config file is named without a flag, first"),
    "response_role": Elsewhere("answers are the assistant's", (None, "assistant")),
    "chat_template_content_format": Elsewhere("the model's template says it", (None, "auto")),
    "return_tokens_as_token_ids": Elsewhere("requests have return_token_ids", (None, False)),
    "enable_force_include_usage": Elsewhere("requests have stream_options.include_usage", (None, False)),
    "api_server_count": Elsewhere("num_replicas of ingress_config says how many processes answer HTTP", (None, 1)),
}  # fmt: skip
_LOG = "request_log says what is logged of requests"
_DONE_OTHERWISE = "the engine does this its own way, and no answer depends on it"
_LOADING = "loading has its own way, and no answer depends on it"
_ONE_GRAMMAR = "there is one library for grammars"
# These change what vLLM logs, or how it does what is done otherwise here, and no answer: what is so here instead.
MEANS_NOTHING: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("disable_log_requests", "enable_log_requests", "max_log_len", "enable_log_outputs", "enable_log_deltas",
             "uvicorn_log_level", "disable_uvicorn_access_log"), _LOG),
        **dict.fromkeys(
            ("disable_log_stats", "aggregate_engine_logging", "collect_detailed_traces", "otlp_traces_endpoint",
             "show_hidden_metrics_for_version"), "metrics and traces are always there: docs/observe.md"),
        **dict.fromkeys(
            ("swap_space", "preemption_mode", "max_seq_len_to_capture", "use_v2_block_manager", "num_scheduler_steps",
             "multi_step_stream_outputs", "num_lookahead_slots", "disable_custom_all_reduce", "disable_cascade_attn",
             "max_num_partial_prefills", "max_long_partial_prefills", "long_prefill_token_threshold",
             "scheduler_delay_factor", "prefix_caching_hash_algo", "disable_async_output_proc", "ray_workers_use_nsight",
             "disable_frontend_multiprocessing"), _DONE_OTHERWISE),
        **dict.fromkeys(
            ("max_parallel_loading_workers", "use_tqdm_on_load", "pt_load_map_location", "ignore_patterns",
             "enable_multithread_load"), _LOADING),
        **dict.fromkeys(
            ("guided_decoding_backend", "structured_outputs_config", "guided_decoding_disable_fallback"), _ONE_GRAMMAR),
        "enable_prompt_tokens_details": "usage always says how many tokens of the prompt were in the cache",
        "enable_request_id_headers": "answers always have X-Request-ID",
        "enable_server_load_tracking": "GET /load is always there",
        "enable_tokenizer_info_endpoint": "GET /tokenizer_info is always there",
    }
)  # fmt: skip
_MORE_SWITCHES = frozenset(
    {
        "aggregate_engine_logging", "async_scheduling", "fully_sharded_loras", "guided_decoding_disable_fallback", "headless",
        "interleave_mm_strings", "multi_step_stream_outputs", "ray_workers_use_nsight", "return_tokens_as_token_ids",
        "allow_credentials",
    }
)  # fmt: skip


def is_switch(name: str) -> bool:
    """Whether vLLM's option ``name`` stands without a value."""
    known = name in ELSEWHERE or name in MEANS_NOTHING or name in ALIASES
    return known and (name in _MORE_SWITCHES or name.startswith(("enable_", "disable_", "skip_", "use_", "trust_")))


def is_same(elsewhere: Elsewhere, value: Any) -> bool:
    """Whether ``value`` is what is done here anyway; 1 is not True."""
    return any(value == same and type(value) is type(same) for same in elsewhere.same)
