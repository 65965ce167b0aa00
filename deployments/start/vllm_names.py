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
# Options of which several values may follow, and the setting that has those after the first.
SEVERAL: Mapping[str, str] = MappingProxyType({"served_model_name": "model_aliases"})
# As a few letters behind one dash.
SHORT: Mapping[str, str] = MappingProxyType(
    {
        "dp": "data_parallel_size",
        "tp": "tensor_parallel_size",
        "pp": "pipeline_parallel_size",
        "q": "quantization",
        "O": "optimization_level",
        "n": "nnodes",
        "r": "node_rank",
        "ep": "enable_expert_parallel",
        "dcp": "decode_context_parallel_size",
        "pcp": "prefill_context_parallel_size",
        "dpn": "data_parallel_rank",
        "dpr": "data_parallel_start_rank",
        "dpl": "data_parallel_size_local",
        "dpa": "data_parallel_address",
        "dpp": "data_parallel_rpc_port",
        "dpb": "data_parallel_backend",
        "dph": "data_parallel_hybrid_lb",
        "dpe": "data_parallel_external_lb",
        "asc": "api_server_count",
        "cc": "compilation_config",
        "ac": "attention_config",
        "sc": "speculative_config",
    }
)
# Values by our name of the setting, that are called otherwise here or are what is done anyway.
VALUES: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("dtype", "half"): "float16",
        ("dtype", "float"): "float32",
        ("device", "cuda"): "gpu",
        ("generation_config", "vllm"): "none",
        ("logprobs_mode", "raw_logprobs"): "raw",
        ("logprobs_mode", "processed_logprobs"): "processed",
        **{("load_format", name): "auto" for name in ("safetensors", "hf", "gguf")},
    }
)
_FITTING = (
    "leave it out for the model's own limit, at most 8192, or give a number; bireme config check shows how many streams of a "
    "length fit"
)
# Values by our name of the setting that mean what no value means here: what to do.
NO_VALUES: Mapping[tuple[str, str | int], str] = MappingProxyType(
    {("max_model_len", "auto"): _FITTING, ("max_model_len", -1): _FITTING}
)
ONE_DEVICE = "an engine computes on one device; num_replicas (of deployment_config) says how many engines there are"
ADAPTERS = "adapters are not supported; merge them into the model"
_PARSERS = "tool_call_parser and reasoning_parser say what is looked for"
_VISION = "models that see or hear are not supported"
_EXPERTS = "mixtures of experts are not supported"
_REVISION = "download the revision, and give its directory as the model"
_FILES = "the model's files say so; change them, and give their directory as the model"
_GRAPHS = "the nearest are enforce_eager and decode_graph_memory_gb"
_SPECULATIVE = "speculative decoding is not supported; leave it out"
_HYBRIDS = "models with states beside the KV cache are not supported"
_QUANTIZATION = "the nearest is a GGUF file as model, which says itself how its weights are stored"
_KV_DTYPE = "the nearest is kv_cache_dtype; scales are made of each token's own vectors"
_OFFLOADING = "weights are not offloaded; a smaller model or a GGUF file needs less memory"
_TEXT = "models generate text"
_NO_PLUG_INS = "there are no plug-ins; leave it out"
_KERNELS = "kernels are chosen by the device; batch_invariant chooses those whose results do not depend on the batch"
ELSEWHERE: Mapping[str, Elsewhere] = {
    **dict.fromkeys(("quantization", "quantization_config"), Elsewhere(_QUANTIZATION, (None, {}))),
    "allow_deprecated_quantization": Elsewhere(_QUANTIZATION, (None, False)),
    "kv_cache_memory_bytes": Elsewhere(
        "kv_cache_memory_gb, in GiB, is of an engine on the CPU; on a GPU num_kv_blocks or gpu_memory_utilization says how much"
    ),
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
    **dict.fromkeys(("calculate_kv_scales", "kv_cache_dtype_skip_layers"), Elsewhere(_KV_DTYPE, (None, False, []))),
    "scheduling_policy": Elsewhere(
        "the nearest is oldest_first_every; requests have the field priority", (None, "fcfs", "priority")
    ),
    "enable_lora": Elsewhere(ADAPTERS, (None, False)),
    **dict.fromkeys(
        ("max_loras", "max_lora_rank", "max_cpu_loras", "lora_modules", "lora_dtype", "fully_sharded_loras",
         "default_mm_loras", "lora_extra_vocab_size", "lora_target_modules", "enable_tower_connector_lora",
         "specialize_active_lora", "enable_mixed_moe_lora_format", "enable_moe_shared_loras", "enable_lora_bias",
         "long_lora_scaling_factors", "qlora_adapter_name_or_path", "enable_prompt_adapter", "prompt_adapters",
         "max_prompt_adapters", "max_prompt_adapter_token"),
        Elsewhere(ADAPTERS, (None, False)),
    ),
    **dict.fromkeys(("enable_auto_tool_choice", "enable_reasoning"), Elsewhere(_PARSERS, (None, False, True))),
    **dict.fromkeys(("tool_parser_plugin", "reasoning_parser_plugin"),
                    Elsewhere("parsers are this project's own; leave it out", (None, ""))),
    "exclude_tools_when_tool_choice_none": Elsewhere(
        "the template gets a request's tools with tool_choice none, too; leave them out of the request", (None, False)
    ),
    "tool_server": Elsewhere("tools are called by the client"),
    "reasoning_config": Elsewhere("reasoning_parser says how a model's reasoning is told from its answer", (None, {})),
    **dict.fromkeys(
        ("limit_mm_per_prompt", "mm_processor_kwargs", "media_io_kwargs", "mm_processor_cache_gb", "allowed_local_media_path",
         "mm_encoder_tp_mode", "interleave_mm_strings", "skip_mm_profiling", "enable_mm_embeds", "allowed_media_domains",
         "mm_processor_cache_type", "mm_hasher_algorithm", "mm_shm_cache_max_object_size_mb", "mm_encoder_only",
         "mm_encoder_attn_backend", "mm_encoder_attn_dtype", "mm_encoder_fp8_scale_path", "mm_encoder_fp8_scale_save_path",
         "mm_encoder_fp8_scale_save_margin", "mm_tensor_ipc", "mm_processor_device", "mm_ipc_gpu_memory_gb",
         "mm_device_do_normalize", "video_pruning_rate", "video_pruning_method", "disable_mm_preprocessor_cache",
         "disable_chunked_mm_input", "enable_multimodal_encoder_data_parallel", "ec_transfer_config", "ec_manager_config"),
        Elsewhere(_VISION, (None, False, {}, 0, "", "auto")),
    ),
    "language_model_only": Elsewhere(_VISION, (None, False, True)),
    **dict.fromkeys(
        ("enable_expert_parallel", "enable_eplb", "eplb_config", "num_redundant_experts", "all2all_backend", "moe_backend",
         "enable_ep_weight_filter", "enable_elastic_ep", "expert_placement_strategy", "enable_return_routed_experts",
         "eplb_window_size", "eplb_step_interval", "eplb_log_balancedness"),
        Elsewhere(_EXPERTS, (None, False, 0, {}, "auto", "linear")),
    ),
    **dict.fromkeys(("revision", "code_revision", "tokenizer_revision"), Elsewhere(_REVISION)),
    **dict.fromkeys(("hf_overrides", "rope_scaling", "rope_theta", "hf_config_path", "override_generation_config"),
                    Elsewhere(_FILES, (None, {}))),
    **dict.fromkeys(("compilation_config", "cudagraph_capture_sizes", "cuda_graph_sizes", "max_cudagraph_capture_size",
                     "optimization_level"), Elsewhere(_GRAPHS)),
    **dict.fromkeys(
        ("attention_backend", "attention_config", "disable_sliding_window", "linear_backend", "kernel_config", "ir_op_priority",
         "use_fp64_gumbel", "enable_bf16x3_router_gemm", "override_attention_dtype"),
        Elsewhere(_KERNELS, (None, False, {}, "auto")),
    ),
    **dict.fromkeys(
        ("speculative_config", "spec_method", "spec_model", "spec_tokens", "speculative_model", "speculative_model_quantization",
         "speculative_draft_tensor_parallel_size", "num_speculative_tokens", "speculative_disable_mqa_scorer",
         "speculative_max_model_len", "speculative_disable_by_batch_size", "ngram_prompt_lookup_max", "ngram_prompt_lookup_min",
         "spec_decoding_acceptance_method", "typical_acceptance_sampler_posterior_threshold",
         "typical_acceptance_sampler_posterior_alpha", "disable_logprobs_during_spec_decoding"),
        Elsewhere(_SPECULATIVE, (None, False)),
    ),
    **dict.fromkeys(
        ("mamba_config", "mamba_backend", "mamba_cache_dtype", "mamba_ssm_cache_dtype", "mamba_block_size", "mamba_cache_mode",
         "mamba_ssu_algorithm", "mamba_cache_philox_rounds", "enable_mamba_cache_stochastic_rounding", "use_replayssm",
         "replayssm_buffer_len", "gdn_prefill_backend", "kda_prefill_backend"),
        Elsewhere(_HYBRIDS, (None, False, {}, "auto")),
    ),
    "kv_transfer_config": Elsewhere("engines do not pass their KV cache on; leave it out"),
    "kv_events_config": Elsewhere("engines do not publish their KV cache; leave it out"),
    **dict.fromkeys(("cpu_offload_gb", "cpu_offload_params", "offload_group_size", "offload_params"),
                    Elsewhere(_OFFLOADING, (None, 0, 0.0, []))),
    **dict.fromkeys(("offload_num_in_group", "offload_prefetch_step"), Elsewhere(_OFFLOADING, (None, 1))),
    "offload_backend": Elsewhere(_OFFLOADING, (None, "auto")),
    **dict.fromkeys(("kv_offloading_size", "kv_offloading_backend"),
                    Elsewhere("the KV cache is not offloaded; leave it out", (None, "native"))),
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
    "task": Elsewhere(_TEXT, (None, "auto", "generate")),
    "runner": Elsewhere(_TEXT, (None, "auto", "generate")),
    "convert": Elsewhere(_TEXT, (None, "auto", "none")),
    **dict.fromkeys(("pooler_config", "override_pooler_config", "diffusion_config", "enable_flash_late_interaction"),
                    Elsewhere(_TEXT, (None, {}, True, False))),
    "model_impl": Elsewhere("models are this project's own: docs/models.md", (None, "auto", "vllm")),
    "model_class_overrides": Elsewhere("models are this project's own: docs/models.md", (None, {})),
    "model_weights": Elsewhere("the model's directory holds its weights; leave it out", (None, "")),
    "weight_transfer_config": Elsewhere("weights are read when an engine starts; leave it out"),
    "override_neuron_config": Elsewhere("engines compute on CPUs and NVIDIA GPUs; leave it out", (None, {})),
    "config_format": Elsewhere("files are recognised by what they hold", (None, "auto", "hf")),
    "model_loader_extra_config": Elsewhere("loading has no options; leave it out", (None, {})),
    "additional_config": Elsewhere(_NO_PLUG_INS, (None, {})),
    "io_processor_plugin": Elsewhere(_NO_PLUG_INS),
    "scheduler_cls": Elsewhere("the scheduler is this project's own; leave it out"),
    "max_num_scheduled_tokens": Elsewhere("the nearest is max_num_batched_tokens"),
    "performance_mode": Elsewhere(
        "the nearest is max_num_batched_tokens: fewer tokens a step for less delay, more for throughput", (None, "balanced")
    ),
    "return_sampling_mask": Elsewhere("answers do not tell which tokens could have been sampled", (None, False)),
    "stream_interval": Elsewhere("tokens leave with the step that made them; leave it out", (None, 1)),
    **dict.fromkeys(("logits_processors", "logits_processor_pattern"),
                    Elsewhere("requests have logit_bias, bad_words and allowed_token_ids")),
    "max_logprobs": Elsewhere("the API allows 20 alternatives; leave it out", (None, *range(21))),
    "worker_cls": Elsewhere("workers are this project's own; leave it out", (None, "auto")),
    "worker_extension_cls": Elsewhere("workers are this project's own; leave it out", (None, "")),
    **dict.fromkeys(
        ("data_parallel_address", "data_parallel_rpc_port", "data_parallel_rank", "data_parallel_start_rank",
         "data_parallel_hybrid_lb", "data_parallel_external_lb", "data_parallel_multi_port_external_lb",
         "data_parallel_supervisor_port", "dp_supervisor_probe_interval_s", "dp_supervisor_probe_timeout_s",
         "dp_supervisor_probe_failure_threshold", "disable_nccl_for_dp_synchronization"), Elsewhere(ONE_DEVICE, (None, False))),
    **dict.fromkeys(("dcp_comm_backend", "dcp_kv_cache_interleave_size", "cp_kv_cache_interleave_size"),
                    Elsewhere(ONE_DEVICE, (None, 1, "ag_rs"))),
    "device_ids": Elsewhere("Ray gives each engine its GPU; CUDA_VISIBLE_DEVICES, where Ray is started, says of which"),
    **dict.fromkeys(("nnodes", "node_rank", "master_addr", "master_port", "headless"),
                    Elsewhere("nodes join with ray start: docs/operate.md", (None, False))),
    **dict.fromkeys(("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "enable_ssl_refresh", "ssl_ciphers"),
                    Elsewhere("TLS ends at a proxy in front: docs/operate.md", (None, False, 0))),
    **dict.fromkeys(("allow_credentials", "allowed_methods", "allowed_headers"),
                    Elsewhere("the nearest is allowed_origins", (None, False))),
    "root_path": Elsewhere("route_prefix in the Serve config is the path that the API is under", (None, "")),
    "uds": Elsewhere("the API listens on host and port", (None, "")),
    "middleware": Elsewhere(_NO_PLUG_INS, (None, [])),
    "config": Elsewhere("a Serve config file is named without a flag, first"),
    "response_role": Elsewhere("answers are the assistant's", (None, "assistant")),
    "chat_template_content_format": Elsewhere("the model's template says it", (None, "auto")),
    "return_tokens_as_token_ids": Elsewhere("requests have return_token_ids", (None, False)),
    "enable_force_include_usage": Elsewhere("requests have stream_options.include_usage", (None, False)),
    "default_chat_template_kwargs": Elsewhere("requests have chat_template_kwargs", (None, {})),
    "enable_per_request_metrics": Elsewhere("bireme trace ID has the times of a request: docs/observe.md", (None, False)),
    **dict.fromkeys(("fingerprint_mode", "fingerprint_value"), Elsewhere(
        "system_fingerprint is of all that an answer depends on: docs/repeatability.md", (None, "full")
    )),
    "tokens_only": Elsewhere("prompts may be token ids, and requests have return_token_ids", (None, False)),
    "disable_fastapi_docs": Elsewhere(
        "GET /docs and GET /openapi.json are always there; a proxy in front can close them", (None, False)
    ),
    "shutdown_timeout": Elsewhere("the nearest is drain_timeout_s", (None, 0)),
    "profiler_config": Elsewhere("bireme timeline records steps of a served engine: docs/observe.md", (None, {})),
    "guided_decoding_disable_any_whitespace": Elsewhere(
        "requests have structured_outputs.disable_any_whitespace; white space between tokens of JSON is bounded without it, too",
        (None, False),
    ),
    "guided_decoding_disable_additional_properties": Elsewhere("a schema says it, with additionalProperties", (None, False)),
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
             "uvicorn_log_level", "disable_uvicorn_access_log", "disable_access_log_for_endpoints", "log_error_stack",
             "log_config_file"), _LOG),
        **dict.fromkeys(
            ("disable_log_stats", "aggregate_engine_logging", "collect_detailed_traces", "otlp_traces_endpoint",
             "show_hidden_metrics_for_version", "kv_cache_metrics", "kv_cache_metrics_sample", "cudagraph_metrics",
             "enable_mfu_metrics", "enable_logging_iteration_details", "enable_layerwise_nvtx_tracing",
             "enable_mm_processor_stats", "collect_model_forward_time", "collect_model_execute_time"),
            "metrics and traces are always there: docs/observe.md"),
        **dict.fromkeys(
            ("swap_space", "preemption_mode", "max_seq_len_to_capture", "use_v2_block_manager", "num_scheduler_steps",
             "multi_step_stream_outputs", "num_lookahead_slots", "disable_custom_all_reduce", "disable_cascade_attn",
             "max_num_partial_prefills", "max_long_partial_prefills", "long_prefill_token_threshold",
             "scheduler_delay_factor", "prefix_caching_hash_algo", "disable_async_output_proc", "ray_workers_use_nsight",
             "disable_frontend_multiprocessing", "disable_hybrid_kv_cache_manager", "kv_sharing_fast_prefill", "enable_dbo",
             "ubatch_size", "dbo_decode_token_threshold", "dbo_prefill_token_threshold", "scheduler_reserve_full_isl",
             "prefill_schedule_interval", "watermark", "prefix_match_unit", "enable_cumem_allocator",
             "enable_extensible_kv_cache", "enable_flashinfer_autotune", "jit_monitor_mode", "jit_monitor_verbose", "numa_bind",
             "numa_bind_nodes", "numa_bind_cpus", "renderer_num_workers", "tokenizer_pool_size", "tokenizer_pool_type",
             "tokenizer_pool_extra_config", "max_context_len_to_capture", "worker_use_ray", "engine_use_ray"), _DONE_OTHERWISE),
        **dict.fromkeys(("distributed_timeout_seconds", "cpu_distributed_timeout_seconds"),
                        "an engine computes on one device, and waits for no other"),
        **dict.fromkeys(("enable_fault_tolerance", "fault_tolerance_config"),
                        "engines that die are always replaced, and their requests go on: docs/faults.md"),
        **dict.fromkeys(("h11_max_incomplete_event_size", "h11_max_header_count"),
                        "requests have bounds of their own: docs/http.md"),
        **dict.fromkeys(("cohere_format", "cohere_is_reasoning_model"), "there are no endpoints of Cohere's API"),
        "fail_on_environ_validation": "no variables of vLLM's are read",
        "enable_offline_docs": "GET /docs loads nothing from elsewhere",
        **dict.fromkeys(
            ("max_parallel_loading_workers", "use_tqdm_on_load", "pt_load_map_location", "ignore_patterns",
             "enable_multithread_load", "safetensors_load_strategy", "safetensors_prefetch_num_threads",
             "safetensors_prefetch_block_size"), _LOADING),
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
        "aggregate_engine_logging", "allow_credentials", "allow_deprecated_quantization", "async_scheduling",
        "calculate_kv_scales", "cohere_is_reasoning_model", "collect_model_execute_time", "collect_model_forward_time",
        "cudagraph_metrics", "data_parallel_external_lb", "data_parallel_hybrid_lb", "data_parallel_multi_port_external_lb",
        "engine_use_ray", "eplb_log_balancedness", "exclude_tools_when_tool_choice_none", "fail_on_environ_validation",
        "fully_sharded_loras", "guided_decoding_disable_additional_properties", "guided_decoding_disable_any_whitespace",
        "guided_decoding_disable_fallback", "headless", "interleave_mm_strings", "jit_monitor_verbose", "kv_cache_metrics",
        "kv_sharing_fast_prefill", "language_model_only", "log_error_stack", "mm_device_do_normalize", "mm_encoder_only",
        "multi_step_stream_outputs", "numa_bind", "ray_workers_use_nsight", "return_sampling_mask", "return_tokens_as_token_ids",
        "scheduler_reserve_full_isl", "specialize_active_lora", "speculative_disable_mqa_scorer", "tokens_only", "worker_use_ray",
    }
)  # fmt: skip
# Of those that are named like switches.
_WITH_A_VALUE = frozenset({"disable_access_log_for_endpoints"})


def is_switch(name: str) -> bool:
    """Whether vLLM's option ``name`` stands without a value."""
    known = name in ELSEWHERE or name in MEANS_NOTHING or name in ALIASES
    return (
        known
        and name not in _WITH_A_VALUE
        and (name in _MORE_SWITCHES or name.startswith(("enable_", "disable_", "skip_", "use_", "trust_")))
    )


def is_same(elsewhere: Elsewhere, value: Any) -> bool:
    """Whether ``value`` is what is done here anyway; 1 is not True."""
    return any(value == same and type(value) is type(same) for same in elsewhere.same)
