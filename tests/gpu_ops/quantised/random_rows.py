"""Random weights in the formats of model files."""

from __future__ import annotations

import numpy as np

from gpu_ops.quantised.stored_rows import BLOCK_INPUTS, BLOCK_TYPES, StoredRows


def random_rows(
    random: np.random.Generator, kind: str, rows: int, in_features: int, factor: float = 1.0, quant: int | None = None
) -> StoredRows:
    """Numbers, scales and minima of a normal distribution; random bytes of quants, or ``quant`` in all of them."""
    block_type = BLOCK_TYPES[kind]
    if block_type.is_dense:
        numbers = random.standard_normal((rows, in_features), np.float32)
        halves = numbers.astype(np.float16) if kind == "F16" else (numbers.view(np.uint32) >> 16).astype(np.uint16)
        return StoredRows(kind, halves.view(np.uint8), factor)
    shape = (rows, in_features // block_type.block_inputs, block_type.block_bytes)
    blocks = random.integers(0, 256, shape, np.uint8) if quant is None else np.full(shape, quant, np.uint8)
    head = 4 if block_type.has_minimum else 2
    numbers = random.standard_normal((*shape[:2], head // 2)).astype(np.float16)
    place = slice(208, 210) if kind == "Q6_K" else slice(head)
    blocks[..., place] = numbers.view(np.uint8)
    return StoredRows(kind, blocks.reshape(rows, -1), factor)


def width_of(kinds: list[str], blocks: int) -> int:
    """Inputs of ``blocks`` of the largest blocks among ``kinds``."""
    return blocks * max(BLOCK_INPUTS, *(BLOCK_TYPES[kind].block_inputs for kind in kinds))
