"""From settings to an engine on a device: chooses the device, sizes the KV cache, loads the weights, captures the graphs."""

from __future__ import annotations

import os
from collections.abc import Callable

from actors.device.choice import choose_device
from actors.device.cpu import CpuDevice
from actors.engine.clock import HostClock
from actors.engine.engine import Engine
from actors.engine.fingerprint import fingerprint
from actors.engine.load_weights import load_weights
from actors.engine.memory_plan import gpu_pool_bytes, gpu_step_bytes, kv_block_bytes, size_kv_cache
from actors.model_files.config import load_model_config
from actors.model_files.source import ModelSource, resolve_model
from actors.models.config import ModelConfig
from actors.models.gpu_limits import check_gpu_model
from actors.runner.model_runner import ModelRunner
from actors.scheduling.kv_cache import KVCache
from actors.scheduling.scheduler import Scheduler
from actors.scheduling.step_plan import StepPlan
from cluster.config import EngineConfig
from cluster.outputs import EngineInfo
from cluster.process.cache import Progress
from gpu_ops import forward

# More tokens a step hardly raise a CPU's throughput (it is bound by arithmetic from about 16 rows on), but everyone
# waits for the step: at 512 the first tokens of a burst came twice as late (DECISIONS.md).
CPU_MAX_NUM_BATCHED_TOKENS = 64
# Prefill keeps at least this share of a step when every other slot decodes.
MIN_PREFILL_TOKENS = 48
# A GPU's matmuls reach their peak from about a thousand rows on.
GPU_MAX_NUM_BATCHED_TOKENS = 2048


def load_engine(
    config: EngineConfig,
    engine_id: str = "engine",
    progress: Progress | None = None,
    record: list[StepPlan] | None = None,
    ended: Callable[[str], None] = lambda stage: None,
    find_model: Callable[[], ModelSource] | None = None,
) -> Engine:
    """Build every part of an engine and put them together.

    Args:
        config: settings.
        engine_id: name in metrics and logs.
        progress: called as ``progress(what, done, total)`` during start.
        record: a list that receives every plan, so that a run can be replayed.
        ended: called with each of ``cluster.start_stages.STAGES`` that is over.
        find_model: finds the model's files; default: where the settings say.

    Raises:
        ModelLoadError, ConfigError, OpBuildError: with one message that says what to do.
    """
    device = choose_device(config)
    source = find_model() if find_model else _model_of(config)
    model_config = load_model_config(source)
    if device.is_gpu:
        check_gpu_model(model_config)
    default_budget = GPU_MAX_NUM_BATCHED_TOKENS if device.is_gpu else CPU_MAX_NUM_BATCHED_TOKENS
    budget = config.max_num_batched_tokens or max(default_budget, config.max_num_seqs + MIN_PREFILL_TOKENS)
    block_bytes = kv_block_bytes(model_config, config.block_size, 2 if device.is_gpu else 4)
    memory_at_start = device.memory()
    # Before the weights, so that what cannot fit is said at once.
    max_model_len, num_blocks = _size_kv_cache(config, model_config, device, budget, block_bytes)
    forward.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)))
    model = load_weights(config, source, model_config, max_model_len, progress, device)
    ended("weights")
    memory_with_weights = device.memory()
    if device.is_gpu:
        max_model_len, num_blocks = _size_kv_cache(
            config, model_config, device, budget, block_bytes, weights_loaded=True
        )
    scheduler = Scheduler(
        KVCache(num_blocks, config.block_size, config.enable_prefix_caching),
        config.max_num_seqs,
        budget,
        max_model_len,
        config.max_queued_requests,
        config.oldest_first_every,
        config.max_queue_share,
    )
    runner = ModelRunner(
        model,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        max_num_batched_tokens=budget,
        num_blocks=num_blocks,
        block_size=config.block_size,
        eos_token_ids=tuple(model_config.eos_token_ids),
        processed_logprobs=config.logprobs_mode == "processed",
    )
    if device.is_gpu:
        if not config.enforce_eager:
            runner.capture_decode_graphs(progress, int(config.decode_graph_memory_gb * 2**30))
        graphs = runner.decode_graphs
        # What the weights took follows from two readings of the memory; what steps take is what the plan keeps for them.
        runner.memory_shares = {
            "total_bytes": memory_at_start[1],
            "weight_bytes": memory_at_start[0] - memory_with_weights[0],
            "kv_cache_bytes": num_blocks * block_bytes,
            "decode_graph_bytes": graphs.num_bytes if graphs else 0,
            "num_decode_graphs": graphs.num_graphs if graphs else 0,
            "step_bytes": gpu_step_bytes(config, model_config, budget),
        }
    info = EngineInfo(
        engine_id,
        fingerprint(config, source, device),
        config.model_id or source.name,
        max_model_len,
        model_config.vocab_size,
        num_blocks,
        config.block_size,
    )
    return Engine(scheduler, runner, info, HostClock(), overlap=config.enable_overlap_schedule, record=record)


def _model_of(config: EngineConfig) -> ModelSource:
    return resolve_model(
        config.model, load_format=config.load_format, tokenizer=config.tokenizer, seed=config.dummy_seed
    )


def _size_kv_cache(
    config: EngineConfig,
    model: ModelConfig,
    device: CpuDevice,
    budget: int,
    block_bytes: int,
    weights_loaded: bool = False,
) -> tuple[int, int]:
    """(max_model_len, num_blocks) from the memory that is free now."""
    free, total = device.memory()
    pool_bytes = int(config.kv_cache_memory_gb * 2**30)
    if device.is_gpu:
        pool_bytes = gpu_pool_bytes(config, model, budget, free, total, weights_loaded)
    return size_kv_cache(config, model.max_position_embeddings, block_bytes, pool_bytes, total)
