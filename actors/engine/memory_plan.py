"""Who gets how much of the device's memory: weights, a step's activations, CUDA graphs, and what is left to the KV pool."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from actors.device.kv_cache_type import kv_cache_dtype
from actors.model_files.weight_format import weight_bytes
from actors.model_files.weights import num_weight_elements
from actors.models.config import ModelConfig
from cluster.config import EngineConfig
from cluster.errors import ConfigError
from gpu_ops.kernel_limits import INVARIANT_PART_POSITIONS, MAX_ATTENTION_PARTS
from gpu_ops.kv_cache import kv_block_bytes

DEFAULT_MAX_MODEL_LEN = 8192
_NONE_STORED: Mapping[str, str] = MappingProxyType({})
# Memory that the CUDA context's later growth and matmul workspaces take.
_GPU_RESERVED_BYTES = 2 << 30
# Paddle keeps what steps of many different sizes left behind. With Llama-3.1-8B's sizes on an H200, beside weights, cache
# and graphs, 0.9 to 1.3 GiB were gone after steps of at most 2,048 tokens and 2.0 to 2.2 after 8,192, under load with prompts
# of random length: 1.4 times what the largest step computes, and the CUDA context. Twice that and more is kept.
_ACTIVATIONS_KEPT = 4
_LOGITS_ROWS = 64
# More tokens a step hardly raise a CPU's throughput (it is bound by arithmetic from about 16 rows on), but everyone
# waits for the step: at 512 the first tokens of a burst came twice as late (DECISIONS.md).
CPU_MAX_NUM_BATCHED_TOKENS = 64
# Prefill keeps at least this share of a step when every other slot decodes.
MIN_PREFILL_TOKENS = 48
# A GPU's matmuls reach their peak from about a thousand rows on.
GPU_MAX_NUM_BATCHED_TOKENS = 2048


def gpu_step_bytes(config: EngineConfig, model: ModelConfig, budget: int) -> int:
    """Bytes of a GPU that are kept for what steps of at most ``budget`` tokens compute, and for the CUDA context's growth."""
    activations = _ACTIVATIONS_KEPT * 2 * budget * (4 * model.hidden_size + 3 * model.intermediate_size)
    logits = 3 * 4 * max(config.max_num_seqs, _LOGITS_ROWS) * model.vocab_size
    return activations + logits + _partials_bytes(config, model, budget) + _GPU_RESERVED_BYTES


def _partials_bytes(config: EngineConfig, model: ModelConfig, budget: int) -> int:
    if not config.batch_invariant:
        return 0  # a place a sequence, which activations cover
    # Each row of a prompt keeps a partial result for every part of the longest context.
    parts = min(-(-(config.max_model_len or DEFAULT_MAX_MODEL_LEN) // INVARIANT_PART_POSITIONS), MAX_ATTENTION_PARTS)
    return 4 * budget * model.num_heads * parts * (model.head_dim + 4)


def gpu_pool_bytes(
    config: EngineConfig, model: ModelConfig, budget: int, free: int, total: int, weights_loaded: bool = False
) -> int:
    """Bytes for the KV pool: the share of the GPU that may be used, less what others use, weights, steps and graphs.

    Args:
        budget: most tokens of a step.
        free, total: bytes of the GPU now.
        weights_loaded: ``free`` no longer holds the room for them.
    Raises:
        ConfigError: nothing is left.
    """
    graphs = 0 if config.enforce_eager else int(config.decode_graph_memory_gb * 2**30)
    needed = gpu_step_bytes(config, model, budget) + graphs
    if not weights_loaded:
        needed += 2 * num_weight_elements(model)
    pool = int(free - (1 - config.gpu_memory_utilization) * total - needed)
    if pool <= 0 and config.num_kv_blocks is None:
        raise ConfigError(
            f"gpu_memory_utilization is {config.gpu_memory_utilization}: of {total / 2**30:.1f} GiB {free / 2**30:.1f} are "
            f"free, and model, steps and graphs need {needed / 2**30:.1f}; raise it, lower decode_graph_memory_gb, or take "
            "a larger GPU or a smaller model",
            "gpu_memory_utilization",
        )
    return pool


def expected_max_model_len(config: EngineConfig, model_limit: int) -> int:
    """Longest sequence, where a device has memory for it.

    Raises:
        ConfigError: the setting exceeds the model's limit.
    """
    if config.max_model_len is not None and config.max_model_len > model_limit:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, this model allows at most {model_limit}", "max_model_len"
        )
    return config.max_model_len or min(model_limit, DEFAULT_MAX_MODEL_LEN)


def step_budget(config: EngineConfig, is_gpu: bool) -> int:
    """Most tokens of a step."""
    default_budget = GPU_MAX_NUM_BATCHED_TOKENS if is_gpu else CPU_MAX_NUM_BATCHED_TOKENS
    return config.max_num_batched_tokens or max(default_budget, config.max_num_seqs + MIN_PREFILL_TOKENS)


def size_kv_cache(
    config: EngineConfig, model_limit: int, block_bytes: int, pool_bytes: int, memory_bytes: int
) -> tuple[int, int]:
    """(max_model_len, num_blocks) that fit the settings, the model, the device's memory and each other.

    Raises:
        ConfigError: the pool exceeds the device's memory, or max_model_len the model's limit or the pool.
    """
    num_blocks = config.num_kv_blocks or max(2, pool_bytes // block_bytes)
    if num_blocks * block_bytes > memory_bytes:
        raise ConfigError(
            f"the KV cache would take {num_blocks * block_bytes / 2**30:.1f} GiB and this device has "
            f"{memory_bytes / 2**30:.1f}; lower kv_cache_memory_gb or num_kv_blocks",
            "num_kv_blocks" if config.num_kv_blocks else "kv_cache_memory_gb",
        )
    capacity = num_blocks * config.block_size
    expected = expected_max_model_len(config, model_limit)
    if config.max_model_len is None:
        return min(expected, capacity), num_blocks
    if config.max_model_len > capacity:
        raise ConfigError(
            f"max_model_len is {config.max_model_len}, but the KV cache holds {capacity} tokens ({num_blocks} blocks of "
            f"{config.block_size}); lower it, or raise kv_cache_memory_gb (GPU: gpu_memory_utilization) or num_kv_blocks",
            "max_model_len",
        )
    return config.max_model_len, num_blocks


class MemoryPlan(NamedTuple):
    """What one engine takes.

    Attributes:
        budget: most tokens of a step.
        num_blocks: of the KV pool; ``block_bytes`` is the size of one, over all layers.
        kv_cache_dtype: type of what it stores.
        step_bytes: kept for what steps compute; 0 on the CPU, where nothing is set aside.
        graph_bytes: kept for CUDA graphs.
    """

    max_model_len: int
    budget: int
    num_blocks: int
    block_bytes: int
    weight_bytes: int
    step_bytes: int
    graph_bytes: int
    kv_cache_dtype: str

    @property
    def kv_cache_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    def num_streams(self, config: EngineConfig, num_tokens: int) -> int:
        """How many sequences of ``num_tokens`` run at the same time without one being put off for want of KV blocks."""
        return min(config.max_num_seqs, self.num_blocks // -(-num_tokens // config.block_size))


def plan_memory(
    config: EngineConfig,
    model: ModelConfig,
    is_gpu: bool,
    free: int,
    total: int,
    weights_loaded: bool = False,
    stored: Mapping[str, str] = _NONE_STORED,
) -> MemoryPlan:
    """The plan for a device of which ``free`` of ``total`` bytes are free now.

    Args:
        weights_loaded: ``free`` no longer holds the room for them.
        stored: the matrices that are computed with as the file has them (``weight_format.kinds_in_use``).
    Raises:
        ConfigError: settings, model and memory do not fit each other.
    """
    budget = step_budget(config, is_gpu)
    kv_dtype = kv_cache_dtype(config, is_gpu)
    block_bytes = model.num_layers * kv_block_bytes(config.block_size, model.num_kv_heads, model.head_dim, kv_dtype)
    pool_bytes = int(config.kv_cache_memory_gb * 2**30)
    if is_gpu:
        pool_bytes = gpu_pool_bytes(config, model, budget, free, total, weights_loaded)
    max_model_len, num_blocks = size_kv_cache(config, model.max_position_embeddings, block_bytes, pool_bytes, total)
    return MemoryPlan(
        max_model_len,
        budget,
        num_blocks,
        block_bytes,
        weight_bytes(model, stored, 2 if is_gpu else 4),
        gpu_step_bytes(config, model, budget) if is_gpu else 0,
        int(config.decode_graph_memory_gb * 2**30) if is_gpu and not config.enforce_eager else 0,
        kv_dtype,
    )
