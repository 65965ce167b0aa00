"""Quantised weight: the blocks of few bits that a model file holds, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import paddle

from actors.device.cpu import CpuDevice
from actors.device.host_tensor import host_view
from actors.layers.weights.weight import MatrixPart, Put, Weight
from gpu_ops.quantised.ops import quantised_embedding, quantised_linear
from gpu_ops.quantised.packing import in_features_of, pack_rows, packed_bytes
from gpu_ops.quantised.stored_rows import StoredRows


class QuantisedWeight(Weight):
    """The kind for rows that a file stores in one of the formats of ``gpu_ops.quantised``.

    Args:
        packed: the weight as ``gpu_ops.quantised.packing.pack_rows`` returned it.
    """

    def __init__(self, packed: paddle.Tensor, out_features: int) -> None:
        self.packed, self.out_features = packed, out_features
        self.in_features, self.num_bytes = in_features_of(host_view(packed)), int(packed.shape[0])

    @classmethod
    def store(cls, device: CpuDevice, arrays: Sequence[np.ndarray | StoredRows], put: Put) -> QuantisedWeight:
        matrices = [array for array in arrays if isinstance(array, StoredRows)]
        return cls(put([pack_rows(matrices)]), sum(map(len, matrices)))

    def ready_tensors(self) -> dict[str, paddle.Tensor]:
        return {"": self.packed}

    @classmethod
    def ready_shapes(
        cls, device: CpuDevice, parts: Sequence[MatrixPart], in_features: int
    ) -> dict[str, tuple[int, ...]]:
        return {"": (packed_bytes([(part.stored, part.rows) for part in parts], in_features),)}

    @classmethod
    def from_ready(cls, device: CpuDevice, tensors: Mapping[str, paddle.Tensor], out_features: int) -> QuantisedWeight:
        return cls(tensors[""], out_features)

    def linear(self, x: paddle.Tensor, bias: paddle.Tensor | None, float32_output: bool) -> paddle.Tensor:
        return quantised_linear(x, self.packed, bias)

    @property
    def fused_block_weight(self) -> paddle.Tensor:
        return self.packed

    def embedding(self, ids: paddle.Tensor) -> paddle.Tensor:
        return quantised_embedding(self.packed, ids)
