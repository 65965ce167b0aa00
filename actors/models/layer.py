"""Decoder layer: what the decoder asks of every kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import paddle

from actors.layers.attention import Attention, LayerCache
from actors.layers.batch_rows import BatchRows
from actors.layers.linear import Linear
from actors.layers.mlp import Mlp
from actors.layers.norm import RMSNorm
from gpu_ops.fused_layers import FusedLayer


class Layer(ABC):
    """Attention and feed-forward around a residual stream [T, H], in ways that compute the same.

    Attributes:
        norm_names: attribute of each norm to its Hugging Face module.
        input_norm: norm of what the layer reads, None where it reads the residual stream itself.
        can_fuse, has_small_batch: whether ``fused`` and ``small_batch`` are of this layer.
    """

    norm_names: ClassVar[dict[str, str]]
    input_norm: RMSNorm | None = None

    def __init__(self, attention: Attention) -> None:
        self.attention, self.mlp = attention, Mlp()

    @property
    def linears(self) -> tuple[Linear, ...]:
        """All matmuls of the layer."""
        return self.attention.qkv, self.attention.o, self.mlp.gate_up, self.mlp.down

    @property
    def can_fuse(self) -> bool:
        return False

    @property
    def has_small_batch(self) -> bool:
        return False

    def fused(self, next_norm: RMSNorm | None) -> FusedLayer:
        """What ``gpu_ops.fused_layers`` computes, with the bits of ``op_by_op``."""
        raise NotImplementedError(f"{type(self).__name__} has no fused form")

    @abstractmethod
    def op_by_op(
        self,
        hidden: paddle.Tensor,
        residual: paddle.Tensor,
        next_norm: RMSNorm | None,
        rows: BatchRows,
        cache: LayerCache,
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Any rows, on any device.

        Args:
            hidden: [T, H], the residual stream after ``input_norm``.
            residual: [T, H], may be changed.
            next_norm: ``input_norm`` of the next layer, or the final norm.
        Returns:
            Both for the next layer.
        """

    def small_batch(self, residual: paddle.Tensor, rows: BatchRows, cache: LayerCache) -> None:
        """A few decoding rows on a GPU: the residual stream [T, H] passes through the layer in place."""
        raise NotImplementedError(f"{type(self).__name__} has no small-batch products")
