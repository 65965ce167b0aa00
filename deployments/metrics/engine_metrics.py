"""Exports the counters of one engine as metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import ActorDiedError, RayError

from cluster.observability.metrics import ENGINE_METRICS
from deployments.metrics.metrics_export import ray_metrics

logger = logging.getLogger("ray.serve")

_POLL_S = 1.0

# Metric to the key in the runner's ``stats``, which counts from the engine's start.
_COUNTERS = {
    "bireme_engine_requests": "num_requests_arrived",
    "bireme_prompt_tokens": "num_prompt_tokens",
    "bireme_cached_prompt_tokens": "num_cached_prompt_tokens",
    "bireme_generation_tokens": "num_generated_tokens",
    "bireme_num_preemptions": "num_preemptions",
    "bireme_engine_steps": "num_steps",
    "bireme_engine_busy_seconds": "busy_seconds",
    "bireme_engine_device_seconds": "device_seconds",
    "bireme_model_sent_bytes": "num_model_bytes_sent",
}
_MEMORY = "bireme_gpu_memory_bytes"
_START = "bireme_engine_start_seconds"
_GAUGES: dict[str, Callable[[dict[str, Any]], float]] = {
    "bireme_num_requests_running": lambda stats: stats["num_requests_running"],
    "bireme_num_requests_waiting": lambda stats: stats["num_requests_waiting"],
    "bireme_num_tokens_running": lambda stats: stats["num_tokens_running"],
    "bireme_num_tokens_waiting": lambda stats: stats["num_tokens_waiting"],
    "bireme_longest_wait_seconds": lambda stats: stats["longest_wait_s"],
    "bireme_kv_cache_free_tokens": lambda stats: stats["num_kv_tokens_free"],
    "bireme_kv_cache_usage_perc": lambda stats: 1 - stats["num_blocks_available"] / stats["num_blocks"],
}


class EngineMetrics:
    """The metrics of one engine."""

    def __init__(self, engine_id: str) -> None:
        self._tags = {"engine_id": engine_id}
        self._metrics = ray_metrics(ENGINE_METRICS)
        self._counted: dict[str, float] = dict.fromkeys(_COUNTERS, 0)

    def record(self, stats: dict[str, Any]) -> None:
        """Take in the runner's ``stats``."""
        for name, value in _GAUGES.items():
            self._metrics[name].set(value(stats), self._tags)
        for key, value in stats.get("memory", {}).items():
            if key.endswith("_bytes"):
                self._metrics[_MEMORY].set(value, {**self._tags, "use": key.removesuffix("_bytes")})
        for stage, seconds in stats["start"]["seconds"].items():
            self._metrics[_START].set(seconds, {**self._tags, "stage": stage})
        if received := stats.get("model_files_from"):
            self._metrics["bireme_model_received_bytes"].set(received["num_bytes"], self._tags)
            self._metrics["bireme_model_received_seconds"].set(received["seconds"], self._tags)
        for name, key in _COUNTERS.items():
            # Ray refuses to count nothing, so a series begins with its first event.
            if stats[key] > self._counted[name]:
                self._metrics[name].inc(stats[key] - self._counted[name], self._tags)
                self._counted[name] = stats[key]

    def record_end(self) -> None:
        """The engine is gone: nothing runs or waits in it."""
        for name in _GAUGES:
            self._metrics[name].set(0, self._tags)


async def export_engine_metrics(engine_id: str, stats: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """Record what ``stats`` returns, once a second, until the engine is gone or the task is cancelled."""
    metrics = EngineMetrics(engine_id)
    try:
        while True:
            try:
                metrics.record(await stats())
            except ActorDiedError:
                return
            except RayError:
                pass  # a call that failed says nothing about the next one
            except Exception:
                logger.exception("metrics of %s are not exported", engine_id)
                return
            await asyncio.sleep(_POLL_S)
    finally:
        metrics.record_end()
