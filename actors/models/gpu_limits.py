"""Which models the GPU kernels compute: said in one sentence when an engine starts, before anything is loaded."""

from __future__ import annotations

from actors.models.config import ModelConfig
from cluster.errors import ConfigError
from gpu_ops.kernel_limits import GPU_HEAD_DIMS, GPU_ROW_MULTIPLE, MAX_GROUP, choices


def check_gpu_model(config: ModelConfig) -> None:
    """Raise unless the kernels of ``gpu_ops`` compute this architecture on a GPU.

    Raises:
        ConfigError: of the setting ``model``; the message names the size, what is supported, and the way out.
    """
    group = config.num_heads // config.num_kv_heads
    if config.head_dim not in GPU_HEAD_DIMS:
        raise _unsupported(f"head_dim is {config.head_dim}", choices(GPU_HEAD_DIMS))
    if group > MAX_GROUP:
        raise _unsupported(f"{group} query heads share a key head", f"at most {MAX_GROUP}")
    for name in ("hidden_size", "intermediate_size"):
        if getattr(config, name) % GPU_ROW_MULTIPLE:
            raise _unsupported(f"{name} is {getattr(config, name)}", f"a multiple of {GPU_ROW_MULTIPLE}")


def _unsupported(found: str, needed: str) -> ConfigError:
    return ConfigError(f"model: {found}; on a GPU the ops need {needed}. Set device: cpu for this model", "model")
