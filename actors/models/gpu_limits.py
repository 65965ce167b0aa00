"""Which models the GPU kernels compute: said in one sentence when an engine starts, before anything is loaded."""

from __future__ import annotations

from actors.models.config import ModelConfig
from cluster.errors import ConfigError

HEAD_DIMS = (64, 80, 96, 128)
# Query heads that share a key head are lines of one query tile.
MAX_GROUP = 16
# 16-bit elements of one 16-byte access.
_WIDTH = 8


def check_gpu_model(config: ModelConfig) -> None:
    """Raise unless the kernels of ``gpu_ops`` compute this architecture on a GPU.

    Raises:
        ConfigError: of the setting ``model``; the message names the size, what is supported, and the way out.
    """
    group = config.num_heads // config.num_kv_heads
    if config.head_dim not in HEAD_DIMS:
        raise _unsupported(
            f"head_dim is {config.head_dim}", f"{', '.join(map(str, HEAD_DIMS[:-1]))} or {HEAD_DIMS[-1]}"
        )
    if group > MAX_GROUP:
        raise _unsupported(f"{group} query heads share a key head", f"at most {MAX_GROUP}")
    if config.qk_norm_over_projection:
        raise _unsupported("q and k are normed over their whole projection", "norms of each head, or none")
    if config.norms == "behind":
        raise _unsupported("norms stand behind attention and feed-forward", "norms before them")
    for name in ("hidden_size", "intermediate_size"):
        if getattr(config, name) % _WIDTH:
            raise _unsupported(f"{name} is {getattr(config, name)}", f"a multiple of {_WIDTH}")


def _unsupported(found: str, needed: str) -> ConfigError:
    return ConfigError(f"model: {found}; on a GPU the ops need {needed}. Set device: cpu for this model", "model")
