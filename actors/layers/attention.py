"""Rotary grouped-query attention over the paged KV cache."""

from __future__ import annotations

import paddle

from actors.device.cpu import CpuDevice
from actors.layers.batch_rows import BatchRows
from actors.layers.linear import Linear
from actors.layers.norm import HeadNorm, ProjectionNorm
from gpu_ops import decode_ops
from gpu_ops import forward as ops

LayerCache = tuple[paddle.Tensor, paddle.Tensor]


class Attention:
    """The projections of one layer and what lies between them.

    Args:
        device: where it computes.
        heads: number of query heads and of key heads.
        scale: factor on the scores.
        cos_sin: the rotary table, [M, D].
        qk_norm: norm of queries and keys before rotation, or None.
    """

    qkv: Linear
    o: Linear

    def __init__(
        self,
        device: CpuDevice,
        heads: tuple[int, int],
        scale: float,
        cos_sin: paddle.Tensor,
        qk_norm: HeadNorm | ProjectionNorm | None,
    ) -> None:
        self.heads, self.scale, self.cos_sin, self.qk_norm = heads, scale, cos_sin, qk_norm
        self._device = device

    def mix(self, qkv: paddle.Tensor, rows: BatchRows, cache: LayerCache) -> paddle.Tensor:
        """Norm, rotate, write the cache and attend: qkv [T, (Hq + 2 Hkv) D] -> the input of ``o``, [T, Hq D].

        On a GPU where all rows decode, attention takes rotary embedding and cache write along.
        """
        where = (rows.positions, rows.slots)
        if self.qk_norm is not None:
            qkv = self.qk_norm(qkv, *self.heads)
        if self._device.is_gpu and rows.max_rows_per_slot == 1:
            return decode_ops.decode_attention(
                qkv, self.cos_sin, *where, rows.block_tables, *cache, *self.heads, self.scale, self._device.batch_invariant
            )  # fmt: skip
        ops.rotary_kv_write(qkv, self.cos_sin, *where, rows.block_tables, *cache, *self.heads)
        return ops.paged_attention(
            qkv, *cache, rows.block_tables, *where, *self.heads, self.scale, rows.cu_seqlens_q,
            rows.max_rows_per_slot, self._device.batch_invariant,
        )  # fmt: skip
