"""Dense weight: every number in the device's own type, in the layout of the matmul."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import paddle

from actors.device.cpu import CpuDevice
from actors.layers.norm import RMSNorm
from actors.layers.weights.weight import MatrixPart, Put, Weight
from gpu_ops import decode_ops
from gpu_ops import forward as ops
from gpu_ops.quantised.stored_rows import StoredRows


class DenseWeight(Weight):
    """The kind that all ops read.

    Args:
        device: where it lies.
        packed: the weight as ``gpu_ops.forward.pack_weight`` returned it.
        num_bytes: before that.
    """

    def __init__(self, device: CpuDevice, packed: paddle.Tensor, out_features: int, num_bytes: int) -> None:
        self.packed, self.out_features, self.in_features = packed, out_features, int(packed.shape[1])
        self.num_bytes = num_bytes
        self._batch_invariant = device.batch_invariant

    @classmethod
    def store(cls, device: CpuDevice, arrays: Sequence[np.ndarray | StoredRows], put: Put) -> DenseWeight:
        matrices = [array for array in arrays if isinstance(array, np.ndarray)]
        num_rows, num_bytes = sum(map(len, matrices)), sum(matrix.nbytes for matrix in matrices)
        return cls(device, ops.pack_weight(put(matrices)), num_rows, num_bytes)

    def ready_tensors(self) -> dict[str, paddle.Tensor]:
        return {"": self.packed}

    @classmethod
    def ready_shapes(
        cls, device: CpuDevice, parts: Sequence[MatrixPart], in_features: int
    ) -> dict[str, tuple[int, ...]]:
        return {"": ops.packed_shape(sum(part.rows for part in parts), in_features, device.is_gpu)}

    @classmethod
    def from_ready(cls, device: CpuDevice, tensors: Mapping[str, paddle.Tensor], out_features: int) -> DenseWeight:
        packed = tensors[""]
        return cls(device, packed, out_features, device.item_bytes * out_features * int(packed.shape[1]))

    def linear(self, x: paddle.Tensor, bias: paddle.Tensor | None, float32_output: bool) -> paddle.Tensor:
        return ops.linear(x, self.packed, self.out_features, bias, float32_output, self._batch_invariant)

    @property
    def fused_block_weight(self) -> paddle.Tensor:
        return self.packed

    @property
    def has_small_batch(self) -> bool:
        return True

    def small_batch_linear(
        self, x: paddle.Tensor, bias: paddle.Tensor | None, norm: RMSNorm | None, swiglu: bool
    ) -> paddle.Tensor:
        weight, eps = (norm.weight, norm.eps) if norm else (None, 0.0)
        return decode_ops.small_batch_linear(x, self.packed, bias, weight, eps, swiglu)

    def add_small_batch_linear(self, x: paddle.Tensor, residual: paddle.Tensor, bias: paddle.Tensor | None) -> None:
        decode_ops.add_small_batch_linear(x, self.packed, residual, bias)

    def embedding(self, ids: paddle.Tensor) -> paddle.Tensor:
        return ops.embedding(self.packed, ids, self.out_features)
