"""How the paged KV cache lies in memory, by the type of its numbers. Twin of what is stored: ``gpu_ops.twins.kv_cache``.

On the CPU the type is one of ``CPU_TYPES``. int8 stands for number * scale, with one float32 scale for a position's key and one
for its value in each head; behind the keys of a block and head lie the scales of its keys, then those of its values.
"""

from __future__ import annotations

from gpu_ops.kernel_limits import BLOCK_SIZES, KV_SCALE_ROWS, MAX_HEAD_DIM, choices

CPU_TYPES = ("float32", "bfloat16", "int8")
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def kv_cache_shape(
    num_blocks: int, block_size: int, kv_heads: int, head_dim: int, dtype: str = "float32", on_gpu: bool = False
) -> tuple[list[int], list[int]]:
    """Shapes of one layer's key and value cache.

    On the CPU keys lie position-fastest, so that a block's scores are full vectors; on the GPU, whose tensor cores turn
    them, keys lie as values do.

    Raises:
        ValueError: ``kernel_limits`` has no such block_size or head_dim.
    """
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size is {block_size}, needs to be {choices(BLOCK_SIZES)}")
    if head_dim % 8 or not 8 <= head_dim <= MAX_HEAD_DIM:
        raise ValueError(f"head_dim is {head_dim}, needs to be a multiple of 8 up to {MAX_HEAD_DIM}")
    values = [num_blocks, kv_heads, block_size, head_dim]
    if on_gpu:
        return values, values
    return [num_blocks, kv_heads, head_dim + _scale_rows(dtype), block_size], values


def kv_block_bytes(block_size: int, kv_heads: int, head_dim: int, dtype: str) -> int:
    """Bytes of one block of one layer on any device: keys, values, and scales."""
    return _ITEM_BYTES[dtype] * kv_heads * block_size * (2 * head_dim + _scale_rows(dtype))


def _scale_rows(dtype: str) -> int:
    return KV_SCALE_ROWS if dtype == "int8" else 0
