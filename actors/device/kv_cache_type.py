"""The setting ``kv_cache_dtype``: the type in which a device keeps keys and values. Loads no Paddle."""

from __future__ import annotations

from cluster.config import EngineConfig
from cluster.errors import ConfigError
from gpu_ops.kv_cache import CPU_TYPES


def kv_cache_dtype(config: EngineConfig, is_gpu: bool) -> str:
    """What the setting comes to: on a GPU the type of its weights.

    Raises:
        ConfigError: the device does not keep keys and values in the type.
    """
    own: tuple[str, ...]
    if is_gpu:
        computed = "bfloat16" if config.dtype == "auto" else config.dtype
        own = (computed,) if computed == "bfloat16" else ()
    else:
        computed, own = "float32", CPU_TYPES
    if config.kv_cache_dtype == "auto":
        return computed
    if config.kv_cache_dtype not in own:
        raise ConfigError(
            f"kv_cache_dtype: a GPU keeps keys and values in the type of its weights ({computed}), "
            f"got {config.kv_cache_dtype}; allowed here: {', '.join(('auto', *own))}",
            "kv_cache_dtype",
        )
    return config.kv_cache_dtype
