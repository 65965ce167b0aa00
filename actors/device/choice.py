"""Which device an engine gets."""

from __future__ import annotations

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
    if config.device == "cpu" or not has_gpu():
        if config.dtype not in ("auto", "float32"):
            raise ConfigError(f"dtype: the CPU computes in float32, got {config.dtype}", "dtype")
        return CpuDevice(kv_cache_dtype(config, is_gpu=False))
    if config.dtype == "float32":
        raise ConfigError("dtype: a GPU computes in bfloat16 or float16, got float32", "dtype")
    kv_cache_dtype(config, is_gpu=True)
    return GpuDevice("bfloat16" if config.dtype == "auto" else config.dtype, config.batch_invariant)
