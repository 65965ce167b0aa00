"""Packed rows of a step: the token, position and sequence of each."""

from __future__ import annotations

from typing import NamedTuple

import paddle


class BatchRows(NamedTuple):
    """Which sequence and position each packed row belongs to.

    ids int64 [T], positions int32 [T], slots int32 [T] (-1 = padding row), block_tables int32 [B, NB].
    cu_seqlens_q int32 [B + 1] and a bound of the rows of a slot let a GPU compute a prompt's rows together.
    """

    ids: paddle.Tensor
    positions: paddle.Tensor
    slots: paddle.Tensor
    block_tables: paddle.Tensor
    cu_seqlens_q: paddle.Tensor | None = None
    max_rows_per_slot: int = 1
