"""SwiGLU feed-forward part of a decoder layer."""

from __future__ import annotations

import paddle

from actors.layers.linear import Linear
from actors.layers.norm import RMSNorm
from gpu_ops import forward as ops


class Mlp:
    """down(silu(gate(x)) * up(x)); gate and up are one layer, the gate's rows first."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: paddle.Tensor) -> paddle.Tensor:
        """[T, H] -> [T, H]."""
        return self.down(ops.swiglu(self.gate_up(x)))

    def gate_small_batch(self, x: paddle.Tensor, norm: RMSNorm | None = None) -> paddle.Tensor:
        """silu(gate) * up of a few rows on a GPU, x normed first where ``norm`` is given: [T, H] -> [T, I]."""
        return self.gate_up.small_batch(x, norm, swiglu=True)
