"""A second kind of weight: what whoever adds one writes, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import paddle

from actors.device.cpu import CpuDevice
from actors.layers.weights.weight import MatrixPart, Put, Weight
from gpu_ops.quantised.stored_rows import StoredRows


class TransposedWeight(Weight):
    """A kind that no op knows but Paddle's product, and that is kept in two arrays."""

    def __init__(self, device: CpuDevice, halves: list[paddle.Tensor], out_features: int) -> None:
        self._halves = halves  # of the inputs
        self.out_features, self.in_features = out_features, sum(half.shape[0] for half in halves)
        self.num_bytes = 4 * out_features * self.in_features

    @classmethod
    def store(cls, device: CpuDevice, arrays: Sequence[np.ndarray | StoredRows], put: Put) -> TransposedWeight:
        array = np.concatenate([array for array in arrays if isinstance(array, np.ndarray)])
        middle = array.shape[1] // 2
        halves = [put([half]) for half in (array.T[:middle], array.T[middle:])]
        return cls(device, halves, array.shape[0])

    def ready_tensors(self) -> dict[str, paddle.Tensor]:
        return {f".half{i}": half for i, half in enumerate(self._halves)}

    @classmethod
    def ready_shapes(
        cls, device: CpuDevice, parts: Sequence[MatrixPart], in_features: int
    ) -> dict[str, tuple[int, ...]]:
        out_features = sum(part.rows for part in parts)
        middle = in_features // 2
        return {".half0": (middle, out_features), ".half1": (in_features - middle, out_features)}

    @classmethod
    def from_ready(cls, device: CpuDevice, tensors: Mapping[str, paddle.Tensor], out_features: int) -> TransposedWeight:
        return cls(device, [tensors[".half0"], tensors[".half1"]], out_features)

    def linear(self, x: paddle.Tensor, bias: paddle.Tensor | None, float32_output: bool) -> paddle.Tensor:
        first, second = self._halves
        y = x[:, : first.shape[0]] @ first + x[:, first.shape[0] :] @ second
        return y if bias is None else y + bias

    def embedding(self, ids: paddle.Tensor) -> paddle.Tensor:
        return paddle.concat(self._halves).t()[ids]
