"""The engine in one plain process, without Ray: scheduler, KV cache and runner, one ``step`` at a time.

Tests and benchmarks drive it directly; the engine loop drives it inside a runner actor.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from typing import Any

from actors.device.cpu import CpuDevice
from actors.device.gpu import GpuDevice, has_gpu
from actors.engine.clock import StepClock
from actors.engine.memory_plan import gpu_pool_bytes, gpu_step_bytes, kv_block_bytes, size_kv_cache
from actors.engine.timeline import Span, StepTimeline
from actors.engine.totals import StepTotals
from actors.model_files.config import load_model_config
from actors.model_files.file_hash import content_id
from actors.model_files.source import ModelSource, resolve_model
from actors.model_files.weights import iter_weights, weights_fingerprint
from actors.models.config import ModelConfig
from actors.models.gpu_limits import check_gpu_model
from actors.models.registry import load_model
from actors.runner.model_runner import ModelRunner
from actors.scheduling.kv_cache import KVCache
from actors.scheduling.scheduler import Scheduler
from actors.scheduling.step_plan import StepPlan
from cluster import __version__
from cluster.cache import Progress
from cluster.config import EngineConfig
from cluster.errors import ConfigError, InvalidRequestError
from cluster.outputs import EngineInfo, TokenDelta
from cluster.request import EngineRequest
from gpu_ops import forward
from gpu_ops.build import sources_hash

# More tokens a step hardly raise a CPU's throughput (it is bound by arithmetic from about 16 rows on), but everyone
# waits for the step: at 512 the first tokens of a burst came twice as late (DECISIONS.md).
CPU_MAX_NUM_BATCHED_TOKENS = 64
# Prefill keeps at least this share of a step when every other slot decodes.
MIN_PREFILL_TOKENS = 48
# A GPU's matmuls reach their peak from about a thousand rows on.
GPU_MAX_NUM_BATCHED_TOKENS = 2048


class Engine:
    """One copy of a model that generates for many requests at once.

    Attributes:
        computes_prefill: the step launched or saved now has slots with several tokens, so it may take long.
        timeline: the recording under way, None mostly.

    Args:
        config: settings.
        engine_id: name in metrics and logs.
        progress: called as ``progress(what, done, total)`` during start.
        record: a list that receives every plan, so that a run can be replayed.

    Raises:
        ModelLoadError, ConfigError, OpBuildError: with one message that says what to do.
    """

    def __init__(
        self,
        config: EngineConfig,
        engine_id: str = "engine",
        progress: Progress | None = None,
        record: list[StepPlan] | None = None,
    ) -> None:
        self.config = config
        self.engine_id = engine_id
        self.record = record
        self.timeline: StepTimeline | None = None
        self._clock = StepClock()
        self.computes_prefill = self._launched_prefill = False
        self.device = choose_device(config)
        self.source: ModelSource = resolve_model(
            config.model, load_format=config.load_format, tokenizer=config.tokenizer, seed=config.seed
        )
        self.model_config: ModelConfig = load_model_config(self.source)
        if self.device.is_gpu:
            check_gpu_model(self.model_config)
        default_budget = GPU_MAX_NUM_BATCHED_TOKENS if self.device.is_gpu else CPU_MAX_NUM_BATCHED_TOKENS
        budget = config.max_num_batched_tokens or max(default_budget, config.max_num_seqs + MIN_PREFILL_TOKENS)
        memory_at_start = self.device.memory()
        # Before the weights, so that what cannot fit is said at once.
        self.max_model_len, num_blocks = self._size_kv_cache(budget)
        forward.set_num_threads(config.num_threads or len(os.sched_getaffinity(0)))
        model = load_model(
            self.model_config,
            iter_weights(self.source, self.model_config, self.device.dtype),
            self.max_model_len,
            progress,
            self.device,
        )
        memory_with_weights = self.device.memory()
        if self.device.is_gpu:
            self.max_model_len, num_blocks = self._size_kv_cache(budget, weights_loaded=True)
        self.scheduler = Scheduler(
            KVCache(num_blocks, config.block_size, config.enable_prefix_caching),
            config.max_num_seqs,
            budget,
            self.max_model_len,
            config.max_queued_requests,
            config.oldest_first_every,
            config.max_queue_share,
        )
        self.runner = ModelRunner(
            model,
            max_num_seqs=config.max_num_seqs,
            max_model_len=self.max_model_len,
            max_num_batched_tokens=budget,
            num_blocks=num_blocks,
            block_size=config.block_size,
            eos_token_ids=tuple(self.model_config.eos_token_ids),
        )
        if self.device.is_gpu and not config.enforce_eager:
            self.runner.capture_decode_graphs(progress, int(config.decode_graph_memory_gb * 2**30))
        self.totals = StepTotals()
        self._memory_shares: dict[str, int] = {}
        if self.device.is_gpu:
            self._memory_shares = self._shares(num_blocks, budget, memory_at_start, memory_with_weights)
        self.info = EngineInfo(
            engine_id,
            fingerprint(config, self.source, self.device),
            config.model_id or self.source.name,
            self.max_model_len,
            self.model_config.vocab_size,
            num_blocks,
            config.block_size,
        )

    def _size_kv_cache(self, budget: int, weights_loaded: bool = False) -> tuple[int, int]:
        """(max_model_len, num_blocks) from the memory that is free now."""
        config, model, device = self.config, self.model_config, self.device
        free, total = device.memory()
        pool_bytes = int(config.kv_cache_memory_gb * 2**30)
        if device.is_gpu:
            pool_bytes = gpu_pool_bytes(config, model, budget, free, total, weights_loaded)
        return size_kv_cache(config, model.max_position_embeddings, self._block_bytes, pool_bytes, total)

    @property
    def _block_bytes(self) -> int:
        return kv_block_bytes(self.model_config, self.config.block_size, 2 if self.device.is_gpu else 4)

    def _shares(
        self, num_blocks: int, budget: int, at_start: tuple[int, int], with_weights: tuple[int, int]
    ) -> dict[str, int]:
        """Bytes of a GPU by what holds them, and those that the plan keeps for steps; two readings of its memory tell what the
        weights took."""
        graphs = self.runner.decode_graphs
        return {
            "total_bytes": at_start[1],
            "weight_bytes": at_start[0] - with_weights[0],
            "kv_cache_bytes": num_blocks * self._block_bytes,
            "decode_graph_bytes": graphs.num_bytes if graphs else 0,
            "num_decode_graphs": len(graphs.buckets) if graphs else 0,
            "step_bytes": gpu_step_bytes(self.config, self.model_config, budget),
        }

    def add_request(self, request: EngineRequest) -> None:
        """Queue a request; raises InvalidRequestError or OverloadedError (see ``Scheduler.add_request``)."""
        vocab_size = self.model_config.vocab_size
        check_token_ids("prompt", request.prompt_token_ids, vocab_size)
        check_token_ids("logit_bias", request.params.logit_bias, vocab_size)
        check_token_ids("stop_token_ids", request.params.stop_token_ids, vocab_size)
        self.scheduler.add_request(request)

    def abort(self, request_id: str, attempt: int = 0) -> TokenDelta | None:
        """End a request; its blocks are free at once. None if it is not here."""
        return self.scheduler.abort(request_id, attempt)

    def has_work(self) -> bool:
        """A step can be launched, or one in flight is still to be saved."""
        return self.scheduler.has_unfinished() or self.runner.has_in_flight()

    def step(self) -> list[TokenDelta]:
        """Schedule, launch, save: one pass of the loop. With overlap, what is saved is the step before."""
        started = time.perf_counter()
        self.totals.begin(started)
        plan = self.scheduler.schedule()
        planned = time.perf_counter()
        prefills = plan is not None and plan.has_prefill
        # With overlap this pass also waits for the step before.
        self.computes_prefill, self._launched_prefill = prefills or self._launched_prefill, prefills
        if plan is not None and self.record is not None:
            self.record.append(plan)
        if self.config.enable_overlap_schedule:
            result = self.runner.execute_model_overlap(plan)
        else:
            result = None if plan is None else self.runner.execute_model(plan)
        deltas: list[TokenDelta] = []
        saved = self.runner.last_saved
        if result is not None and saved is not None:
            device_seconds = saved.device_end - saved.device_start
            self.totals.saved(device_seconds, saved.launched_at, self._clock.ended_at)
            self._clock.saved(saved.num_tokens, saved.launched_at, saved.waited_from, saved.waited_at, device_seconds)
            deltas = self.scheduler.update(result)
        launched = self.runner.step_in_flight
        if plan is None:
            self._clock.launched_nothing()
        elif launched is not None:
            self._clock.launched(started, launched.launched_at)
        self.totals.end(time.perf_counter(), self.has_work())
        if self.timeline is not None:
            self.timeline.add(
                Span(started, time.perf_counter()),
                Span(started, planned),
                None if plan is None else plan.step,
                None if result is None else result.step,
                saved,
            )
            if self.timeline.full.done():
                self.stop_timeline(self.timeline)
        return deltas

    def start_timeline(self, num_steps: int) -> StepTimeline:
        """Record the next steps; the recording ends by itself when it is full. Waits for the device.

        Raises:
            InvalidRequestError: ``num_steps`` is out of range, or another recording is under way.
        """
        if self.timeline is not None:
            raise InvalidRequestError("a timeline is being recorded already; wait until it is full", "steps")
        timeline = StepTimeline(num_steps, self.device.name)
        self.runner.align_clocks()
        self.timeline = timeline
        return timeline

    def stop_timeline(self, timeline: StepTimeline) -> None:
        """End ``timeline`` unless it has ended; another recording may have begun since."""
        if self.timeline is timeline:
            self.timeline = None
            self.device.free_clock()

    def seconds_to_wait(self) -> float:
        """How long the next ``step`` may wait for arrivals without the device running dry; 0 when it must not wait."""
        in_flight = self.runner.step_in_flight
        if in_flight is None:
            return 0.0
        return self._clock.seconds_to_wait(in_flight.num_tokens, in_flight.launched_at)

    def figures(self) -> dict[str, Any]:
        """Where the engine computes, its time so far, and what holds the device's memory (a GPU's, in bytes)."""
        figures: dict[str, Any] = {
            "device": self.device.name,
            "dtype": self.device.dtype,
            "batch_invariant": self.device.batch_invariant or not self.device.is_gpu,
            **self.totals.figures(),
            "host_lead_seconds": self._clock.margin_s,
        }
        if self.device.is_gpu:
            memory = figures["memory"] = dict(self._memory_shares)
            # On the stream, because whoever asks may be a thread that the device does not know yet.
            self.runner.stream.run(lambda: memory.update(free_bytes=self.device.free_bytes()))
        return figures

    def generate(self, requests: Iterable[EngineRequest]) -> dict[str, list[TokenDelta]]:
        """Run these requests, and those queued before, to their end; deltas by request id."""
        deltas: dict[str, list[TokenDelta]] = {}
        for request in requests:
            self.add_request(request)
            deltas[request.request_id] = []
        while self.has_work():
            for delta in self.step():
                deltas.setdefault(delta.request_id, []).append(delta)
        return deltas

    def check_integrity(self) -> None:
        """Raise unless nothing has leaked; for use between steps."""
        self.scheduler.check_integrity()
        if not self.has_work():
            if (self.runner.preempted_idx >= 0).any():
                raise RuntimeError(f"stale preempted_idx: {self.runner.preempted_idx.tolist()}")
            if not self.runner.is_idle():
                raise RuntimeError("the device reports a running slot, the scheduler has none")

    def close(self) -> None:
        self.runner.close()


def check_token_ids(name: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """Raise InvalidRequestError naming the first id outside the vocabulary."""
    for token in token_ids:
        if not 0 <= token < vocab_size:
            raise InvalidRequestError(
                f"{name}: token id {token} is outside the vocabulary, 0 to {vocab_size - 1}", name
            )


def choose_device(config: EngineConfig) -> CpuDevice:
    """The device that the settings ask for; auto takes a GPU where Paddle sees one.

    Raises:
        ConfigError: there is no GPU, or the device cannot compute in the type.
    """
    if config.device == "gpu" and not has_gpu():
        raise ConfigError(
            "device: gpu, but Paddle was built without CUDA or finds no GPU; use cpu or auto, or install paddlepaddle-gpu",
            "device",
        )
    if config.device == "cpu" or not has_gpu():
        if config.dtype not in ("auto", "float32"):
            raise ConfigError(f"dtype: the CPU computes in float32, got {config.dtype}", "dtype")
        return CpuDevice()
    if config.dtype == "float32":
        raise ConfigError("dtype: a GPU computes in bfloat16 or float16, got float32", "dtype")
    return GpuDevice("bfloat16" if config.dtype == "auto" else config.dtype, config.batch_invariant)


def fingerprint(config: EngineConfig, source: ModelSource, device: CpuDevice) -> str:
    """Equal for engines that continue each other's requests exactly: weights, tokenizer, dtype, kernels, version.

    On the CPU the kernels give the same bits on every instruction set, so only their sources count. A GPU's matmuls come
    from a library that chooses by chip.
    """
    parts = [__version__, weights_fingerprint(source), _tokenizer_content(source), sources_hash()]
    if config.load_format == "dummy":
        parts.append(str(config.seed))
    if device.is_gpu:
        parts += [device.name, device.dtype, str(device.batch_invariant)]
    return "bireme-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _tokenizer_content(source: ModelSource) -> str:
    """Digest of what the tokenizer is read from; where the files lie does not matter."""
    path = source.tokenizer
    if path is None:
        return ""
    files = sorted(f for f in path.iterdir() if f.name.startswith(("token", "special"))) if path.is_dir() else [path]
    return " ".join(content_id(file) for file in files if file.is_file())
