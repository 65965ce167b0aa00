"""Linear layer: a weight of some kind and a bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import paddle

from actors.device.cpu import CpuDevice
from actors.layers.norm import RMSNorm
from actors.layers.weights.weight import MatrixPart, Weight

_BIAS = ".bias"


class Linear:
    """x W^T + bias. The kind of weight chooses the op.

    Args:
        weight: W [out_features, in_features].
        bias: [out_features] or None.
    """

    def __init__(self, weight: Weight, bias: paddle.Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    def ready_tensors(self) -> dict[str, paddle.Tensor]:
        """All that it holds, by the ending of their names; for ``from_ready``."""
        bias = {} if self.bias is None else {_BIAS: self.bias}
        return {**self.weight.ready_tensors(), **bias}

    @staticmethod
    def ready_shapes(
        device: CpuDevice, kind: type[Weight], parts: Sequence[MatrixPart], in_features: int, num_biases: int
    ) -> dict[str, tuple[int, ...]]:
        """Of those tensors, of a layer with a weight of that kind which consists of ``parts``."""
        bias = {_BIAS: (num_biases,)} if num_biases else {}
        return {**kind.ready_shapes(device, parts, in_features), **bias}

    @classmethod
    def from_ready(
        cls, device: CpuDevice, kind: type[Weight], tensors: Mapping[str, paddle.Tensor], out_features: int
    ) -> Linear:
        """Over the memory of ``tensors``, which have the content of ``ready_tensors`` of such a layer."""
        return cls(kind.from_ready(device, tensors, out_features), tensors.get(_BIAS))

    def __call__(self, x: paddle.Tensor, float32_output: bool = False) -> paddle.Tensor:
        """Of any number of rows: [T, in_features] -> [T, out_features]."""
        return self.weight.linear(x, self.bias, float32_output)

    def small_batch(self, x: paddle.Tensor, norm: RMSNorm | None = None, swiglu: bool = False) -> paddle.Tensor:
        """Of a few rows on a GPU: ``norm`` of x comes first where given, ``swiglu`` of the result last."""
        return self.weight.small_batch_linear(x, self.bias, norm, swiglu)

    def add_small_batch(self, x: paddle.Tensor, residual: paddle.Tensor) -> None:
        """Add the result for a few rows on a GPU to residual [T, out_features], in place."""
        self.weight.add_small_batch_linear(x, residual, self.bias)
