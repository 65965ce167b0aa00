"""What keys of Ray Serve LLM and of vLLM's engine are called here, and what to use instead of those that are nothing here."""

from __future__ import annotations

from typing import Any, NamedTuple

from deployments.start.settings_names import NOT_SUPPORTED


class Elsewhere(NamedTuple):
    """A key that is not carried over.

    Attributes:
        instead: what to use.
        same: values that say what is so here anyway; they are left out.
    """

    instead: str
    same: tuple[Any, ...] = (None,)


_ADAPTERS = "adapters are not supported; merge them into the model"
_TOOLS = "tools and parsers of answers are not supported"
_VISION = "models that see or hear are not supported"
_EXPERTS = "mixtures of experts are not supported"
_REVISION = "download the revision, and give its directory as model_loading_config.model_source"
_FILES = "the model's files say so; change them, and give their directory as model_loading_config.model_source"
_GRAPHS = "the nearest are enforce_eager and decode_graph_memory_gb"
ONE_DEVICE = "an engine computes on one device; deployment_config.num_replicas says how many engines there are"
_KERNELS = "kernels are chosen by the device; batch_invariant chooses those whose results do not depend on the batch"

# Of Ray's LLMConfig.
CONFIG_ELSEWHERE: dict[str, Elsewhere] = {
    "llm_engine": Elsewhere("the engine is this project's; leave it out", (None, "vLLM")),
    "lora_config": Elsewhere(_ADAPTERS),
    "server_cls": Elsewhere("engines are of one class; leave it out"),
    "callback_config": Elsewhere(
        "there are no callbacks; what needs none of them is a step before bireme serve", (None, {})
    ),
    "runtime_env": Elsewhere(
        "the runtime_env of the application, beside import_path in the Serve config, has variables of all its processes",
        (None, {}, {"env_vars": {}}),
    ),
    "log_engine_metrics": Elsewhere("metrics are always there", (None, True, False)),
}
EXPERIMENTS_ELSEWHERE = {
    "stream_batching_interval_ms": Elsewhere("tokens leave with the step that made them; leave it out", (None, 0)),
}
# Of vLLM's engine: what has another name or meaning here is in ``settings_names``, for the command line, too.
ENGINE_ELSEWHERE: dict[str, Elsewhere] = {
    **{name: Elsewhere(instead) for name, instead in NOT_SUPPORTED.items() if name not in ("api_key", "async_scheduling")},
    **dict.fromkeys(
        ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "prefill_context_parallel_size",
         "decode_context_parallel_size"),
        Elsewhere(ONE_DEVICE, (None, 1)),
    ),
    "data_parallel_size_local": Elsewhere(ONE_DEVICE, (None, 1)),
    "data_parallel_backend": Elsewhere(ONE_DEVICE, (None, "ray", "mp")),
    # With one device there is nothing to distribute.
    "distributed_executor_backend": Elsewhere(ONE_DEVICE, (None, "ray", "mp", "uni")),
    "enable_chunked_prefill": Elsewhere(NOT_SUPPORTED["enable_chunked_prefill"], (None, True)),
    "trust_remote_code": Elsewhere(NOT_SUPPORTED["trust_remote_code"], (None, False)),
    "kv_cache_dtype": Elsewhere(NOT_SUPPORTED["kv_cache_dtype"], (None, "auto")),
    "scheduling_policy": Elsewhere(NOT_SUPPORTED["scheduling_policy"], (None, "fcfs", "priority")),
    "enable_lora": Elsewhere(_ADAPTERS, (None, False)),
    **dict.fromkeys(
        ("max_loras", "max_lora_rank", "max_cpu_loras", "lora_modules", "lora_dtype", "fully_sharded_loras",
         "default_mm_loras", "lora_extra_vocab_size"),
        Elsewhere(_ADAPTERS, (None, False)),
    ),
    **dict.fromkeys(
        ("enable_auto_tool_choice", "tool_call_parser", "tool_parser_plugin", "reasoning_parser", "enable_reasoning"),
        Elsewhere(_TOOLS, (None, False, "")),
    ),
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
    "model": Elsewhere("model_loading_config.model_source is the model"),
    "served_model_name": Elsewhere("model_loading_config.model_id is the name"),
    "seed": Elsewhere("requests have a seed of their own; one without it gets one, which its answer tells", (None, 0)),
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
}  # fmt: skip
# These change what vLLM logs, or how it does what is done otherwise here, and no answer.
MEANS_NOTHING = frozenset(
    {
        "disable_log_stats", "disable_log_requests", "enable_log_requests", "max_log_len", "aggregate_engine_logging",
        "swap_space", "preemption_mode", "max_seq_len_to_capture", "use_v2_block_manager", "num_scheduler_steps",
        "multi_step_stream_outputs", "num_lookahead_slots", "disable_custom_all_reduce", "disable_cascade_attn",
        "max_parallel_loading_workers", "ray_workers_use_nsight", "use_tqdm_on_load", "enable_prompt_tokens_details",
        "max_num_partial_prefills", "max_long_partial_prefills", "long_prefill_token_threshold", "scheduler_delay_factor",
        "collect_detailed_traces", "show_hidden_metrics_for_version", "prefix_caching_hash_algo", "pt_load_map_location",
        # There is one library for grammars.
        "guided_decoding_backend", "structured_outputs_config", "guided_decoding_disable_fallback",
        "ignore_patterns", "otlp_traces_endpoint", "enable_multithread_load", "disable_async_output_proc",
    }
)  # fmt: skip
# Values that are called otherwise here, or are what is done anyway.
ENGINE_VALUES: dict[tuple[str, Any], Any] = {
    ("dtype", "half"): "float16",
    ("dtype", "float"): "float32",
    ("generation_config", "vllm"): "none",
    ("logprobs_mode", "raw_logprobs"): "raw",
    ("logprobs_mode", "processed_logprobs"): "processed",
    **{("load_format", name): "auto" for name in ("safetensors", "hf", "gguf")},
}
ENGINE_NAMES = {"async_scheduling": "enable_overlap_schedule"}
