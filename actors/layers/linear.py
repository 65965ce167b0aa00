"""Linear layer: a weight of some kind and a bias."""

from __future__ import annotations

import paddle

from actors.layers.norm import RMSNorm
from actors.layers.weights.weight import Weight


class Linear:
    """x W^T + bias. The kind of weight chooses the op.

    Args:
        weight: W [out_features, in_features].
        bias: [out_features] or None.
    """

    def __init__(self, weight: Weight, bias: paddle.Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, x: paddle.Tensor, float32_output: bool = False) -> paddle.Tensor:
        """Of any number of rows: [T, in_features] -> [T, out_features]."""
        return self.weight.linear(x, self.bias, float32_output)

    def small_batch(self, x: paddle.Tensor, norm: RMSNorm | None = None, swiglu: bool = False) -> paddle.Tensor:
        """Of a few rows on a GPU: ``norm`` of x comes first where given, ``swiglu`` of the result last."""
        return self.weight.small_batch_linear(x, self.bias, norm, swiglu)

    def add_small_batch(self, x: paddle.Tensor, residual: paddle.Tensor) -> None:
        """Add the result for a few rows on a GPU to residual [T, out_features], in place."""
        self.weight.add_small_batch_linear(x, residual, self.bias)
