"""Which device an engine gets."""

from __future__ import annotations

from actors.device.compute_type import compute_dtype
from actors.device.cpu import CpuDevice
from actors.device.gpu import GpuDevice, has_gpu
from actors.device.kv_cache_type import kv_cache_dtype
from cluster.config import EngineConfig
from cluster.errors import ConfigError


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
    is_gpu = config.device != "cpu" and has_gpu()
    dtype, kept = compute_dtype(config, is_gpu), kv_cache_dtype(config, is_gpu)
    return GpuDevice(dtype, config.batch_invariant) if is_gpu else CpuDevice(kept)
