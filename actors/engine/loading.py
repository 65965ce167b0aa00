"""From settings to an engine on a device: chooses the device, sizes the KV cache, loads the weights, captures the graphs."""

from __future__ import annotations

import os
from collections.abc import Callable

from actors.device.choice import choose_device
from actors.engine.clock import HostClock
from actors.engine.engine import Engine
from actors.engine.fingerprint import fingerprint
from actors.engine.kept_weights import WhenReady
from actors.engine.load_weights import load_weights
from actors.engine.memory_plan import plan_memory
from actors.model_files.config import load_model_config
from actors.model_files.source import ModelSource, model_of
from actors.models.decoder import Decoder
from actors.models.gpu_limits import check_gpu_model
from actors.runner.model_runner import ModelRunner
from actors.scheduling.kv_cache import KVCache
from actors.scheduling.prefill_delay import DEFAULT_STEPS, PrefillDelay
from actors.scheduling.scheduler import Scheduler
from actors.scheduling.step_plan import StepPlan
from actors.structured_output.grammars import Grammars
from actors.text.vocabulary import load_vocabulary
from cluster.config import EngineConfig
from cluster.outputs import EngineInfo
from cluster.process.cache import Progress
from gpu_ops import forward


def load_engine(
    config: EngineConfig,
    engine_id: str = "engine",
    progress: Progress | None = None,
    record: list[StepPlan] | None = None,
    ended: Callable[[str], None] = lambda stage: None,
    find_model: Callable[[], ModelSource] | None = None,
    when_ready: list[WhenReady] | None = None,
) -> Engine:
    """Build every part of an engine and put them together.

    Args:
        config: settings.
        engine_id: name in metrics and logs.
        progress: called as ``progress(what, done, total)`` during start.
        record: a list that receives every plan, so that a run can be replayed.
        ended: called with each of ``cluster.observability.start_stages.STAGES`` that is over.
        find_model: finds the model's files; default: where the settings say.
        when_ready: receives what is to be called once the engine is ready for requests.

    Raises:
        ModelLoadError, ConfigError, OpBuildError: with one message that says what to do.
    """
    device = choose_device(config)
    source = find_model() if find_model else model_of(config)
    model_config = load_model_config(source)
    if device.is_gpu:
        check_gpu_model(model_config)
    memory_at_start = device.memory()
    # Before the weights, so that what cannot fit is said at once.
    plan = plan_memory(config, model_config, device.is_gpu, *memory_at_start)
    forward.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)))
    model = load_weights(config, source, model_config, plan.max_model_len, progress, device, when_ready)
    ended("weights")
    memory_with_weights = device.memory()
    if device.is_gpu:
        plan = plan_memory(config, model_config, True, *memory_with_weights, weights_loaded=True)
    scheduler = Scheduler(
        KVCache(plan.num_blocks, config.block_size, config.enable_prefix_caching),
        config.max_num_seqs,
        plan.budget,
        plan.max_model_len,
        config.max_queued_requests,
        config.oldest_first_every,
        config.max_queue_share,
        _prefill_delay(config, model),
    )
    eos_token_ids = tuple(model_config.eos_token_ids)
    vocab_size = model_config.vocab_size
    grammars = Grammars(lambda: load_vocabulary(source, vocab_size), vocab_size, eos_token_ids)
    runner = ModelRunner(
        model,
        max_num_seqs=config.max_num_seqs,
        max_model_len=plan.max_model_len,
        max_num_batched_tokens=plan.budget,
        num_blocks=plan.num_blocks,
        block_size=config.block_size,
        eos_token_ids=eos_token_ids,
        processed_logprobs=config.logprobs_mode == "processed",
        grammars=grammars,
    )
    if device.is_gpu:
        if not config.enforce_eager:
            runner.capture_graphs(progress, int(config.decode_graph_memory_gb * 2**30))
        graphs = runner.graphs
        # What the weights took follows from two readings of the memory; what steps take is what the plan keeps for them.
        runner.memory_shares = {
            "total_bytes": memory_at_start[1],
            "weight_bytes": memory_at_start[0] - memory_with_weights[0],
            "kv_cache_bytes": plan.kv_cache_bytes,
            "graph_bytes": graphs.num_bytes if graphs else 0,
            "num_graphs": graphs.num_graphs if graphs else 0,
            "step_bytes": plan.step_bytes,
        }
    info = EngineInfo(
        engine_id,
        fingerprint(config, source, device),
        config.model_id or source.name,
        plan.max_model_len,
        model_config.vocab_size,
        plan.num_blocks,
        config.block_size,
    )
    overlap = config.enable_overlap_schedule
    return Engine(scheduler, runner, info, HostClock(), overlap=overlap, record=record, grammars=grammars)


def _prefill_delay(config: EngineConfig, model: Decoder) -> PrefillDelay:
    launch_bound = model.max_launch_bound_rows if model.device.is_gpu else 0
    steps = config.prefill_delay_steps
    if steps is None:
        steps = DEFAULT_STEPS if launch_bound else 0
    return PrefillDelay(steps, launch_bound or None)
