"""RMSNorm: alone, after a residual addition, and of queries and keys over a head or over their whole projection."""

from __future__ import annotations

import paddle

from gpu_ops import forward as ops


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; weight [H]."""

    def __init__(self, weight: paddle.Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """Norm of x [T, H]."""
        return ops.rms_norm(x, self.weight, self.eps)

    def after_add(self, x: paddle.Tensor, residual: paddle.Tensor) -> paddle.Tensor:
        """Add x [T, H] to residual [T, H] in place; return the norm of the sum."""
        return ops.add_rms_norm(x, residual, self.weight, self.eps)

    def add_to(self, residual: paddle.Tensor, x: paddle.Tensor) -> None:
        """Add the norm of x [T, H] to residual [T, H] in place."""
        ops.rms_norm_add(x, residual, self.weight, self.eps)


class HeadNorm:
    """RMSNorm of each query and key head before rotation, as in Qwen3; q and k have weights [D]."""

    q: RMSNorm
    k: RMSNorm

    def __call__(self, qkv: paddle.Tensor, num_heads: int, num_kv_heads: int) -> paddle.Tensor:
        """Norm qkv [T, (num_heads + 2 * num_kv_heads) * D] in place and return it."""
        ops.qk_norm(qkv, self.q.weight, self.k.weight, num_heads, num_kv_heads, self.q.eps)
        return qkv


class ProjectionNorm:
    """RMSNorm of all queries of a row together and of all its keys, before rotation, as in OLMo 2; q has a weight [Hq D], k
    one [Hkv D]."""

    q: RMSNorm
    k: RMSNorm

    def __call__(self, qkv: paddle.Tensor, num_heads: int, num_kv_heads: int) -> paddle.Tensor:
        """Norm qkv [T, (num_heads + 2 * num_kv_heads) * D] in place and return it."""
        ops.projection_norm(qkv, self.q.weight, self.k.weight, self.q.eps)
        return qkv
