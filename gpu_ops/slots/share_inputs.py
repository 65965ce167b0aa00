"""The device state of all request slots, as tensors: one row a slot, written only by the state ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from gpu_ops.slots.slot_fields import FIELDS, FIXED_SIZES, SlotFields


@dataclass(frozen=True, slots=True)
class ShareInputs(SlotFields):
    """The fields of `gpu_ops.slots.slot_fields`, all contiguous.

    Attributes:
        block_size: tokens a KV block holds.
    """

    block_size: int = 0

    def __post_init__(self) -> None:
        # Checked once, here, because the ops write in place every step: a write into a strided view would be lost.
        for entry in FIELDS:
            if not getattr(self, entry.name).is_contiguous():
                raise ValueError(f"{entry.name} must be contiguous: ops write it in place")
        if self.block_size < 1:
            raise ValueError(f"block_size is {self.block_size}, must be at least 1")


def field_arrays(max_num_seqs: int, max_model_len: int, block_size: int) -> dict[str, np.ndarray]:
    """Every field of empty slots as NumPy arrays: all stopped, no blocks, no tokens."""
    for name, value in (("max_num_seqs", max_num_seqs), ("max_model_len", max_model_len), ("block_size", block_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, must be at least 1")
    sizes = {
        "slots": max_num_seqs,
        "max_model_len": max_model_len,
        "blocks": -(-max_model_len // block_size),
    } | FIXED_SIZES
    return {
        entry.name: np.full(
            [size if isinstance(size, int) else sizes[size] for size in entry.sizes], entry.empty, entry.dtype
        )
        for entry in FIELDS
    }


def allocate_share_inputs(max_num_seqs: int, max_model_len: int, block_size: int, place: Any = None) -> ShareInputs:
    """State for empty slots on `place` (default: the CPU). On a GPU fields that the host reads lie in pinned memory.

    Raises:
        ValueError: a size is below 1.
    """
    place = paddle.CPUPlace() if place is None else place
    arrays = field_arrays(max_num_seqs, max_model_len, block_size)
    tensors = {name: paddle.to_tensor(array, place=place) for name, array in arrays.items()}
    if tensors["token_ids_all"].place.is_gpu_place():
        for entry in FIELDS:
            if entry.on_host:
                tensors[entry.name] = paddle.to_tensor(arrays[entry.name], place=paddle.CUDAPinnedPlace())
    return ShareInputs(**tensors, block_size=block_size)
