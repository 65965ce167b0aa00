"""The setting ``dtype``: the type that a device computes in. Loads no Paddle."""

from __future__ import annotations

from cluster.config import SIMULATED, EngineConfig
from cluster.errors import ConfigError

CPU_TYPES = ("float32",)
GPU_TYPES = ("bfloat16", "float16")


def compute_dtype(config: EngineConfig, is_gpu: bool) -> str:
    """What the setting comes to: auto is the device's first type.

    Raises:
        ConfigError: the device does not compute in the type.
    """
    own, device = (GPU_TYPES, "a GPU") if is_gpu else (CPU_TYPES, "the CPU")
    if config.dtype == "auto" or config.device == SIMULATED:
        return own[0]
    if config.dtype not in own:
        raise ConfigError(
            f"dtype: {device} computes in {' or '.join(own)}, got {config.dtype}; allowed here: {', '.join(('auto', *own))}",
            "dtype",
        )
    return config.dtype
