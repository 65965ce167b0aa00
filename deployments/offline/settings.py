"""The settings of ``LLM`` as types: what editors offer, and type checkers refuse."""

from __future__ import annotations

from typing import Literal, TypedDict

from cluster.config import ReasoningParser, ToolCallParser


class LLMSettings(TypedDict, total=False):
    """What they mean: ``cluster.config.LLMConfig``."""

    model_id: str | None
    tokenizer: str | None
    load_format: Literal["auto", "dummy"]
    device: Literal["auto", "cpu", "gpu", "simulated"]
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    weight_format: Literal["auto", "stored", "float32"]
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int | None
    block_size: Literal[16, 32, 64]
    num_kv_blocks: int | None
    kv_cache_dtype: Literal["auto", "float32", "bfloat16", "int8"]
    kv_cache_memory_gb: float
    ready_weights_gb: float | None
    weights_from_peers: bool
    gpu_memory_utilization: float
    batch_invariant: bool
    enforce_eager: bool
    decode_graph_memory_gb: float
    enable_prefix_caching: bool
    enable_overlap_schedule: bool
    num_threads: int | None
    max_queued_requests: int
    oldest_first_every: int
    max_queue_share: float
    prefill_delay_steps: int | None
    logprobs_mode: Literal["raw", "processed"]
    hang_timeout_s: float
    dummy_seed: int
    simulated_step_s: float
    simulated_token_s: float
    generation_config: str
    special_tokens_in_messages: Literal["text", "control"]
    max_choices: int
    tool_call_parser: ToolCallParser
    reasoning_parser: ReasoningParser
