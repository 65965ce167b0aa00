"""Rotary embedding, cache write and paged attention on the GPU against their twins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from gpu_ops import forward as ops
from gpu_ops.twins import forward as twins
from tests.gpu.parts.tensors import HALVES, TOLERANCE, gpu, host, poison, relative_error, round_to


@dataclass
class Case:
    """Rows of a step over a paged cache; floats are values that `dtype` can hold, the cache has NaN where nothing lies."""

    dtype: str
    block_size: int
    q_heads: int
    kv_heads: int
    head_dim: int
    qkv: np.ndarray
    cache: tuple[np.ndarray, np.ndarray]  # k and v, [blocks, kv_heads, block_size, head_dim]
    block_tables: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    cu_seqlens_q: np.ndarray

    @staticmethod
    def random(rows_of_slots, lengths, block_size, q_heads, kv_heads, head_dim, dtype, padding=0, width=None):
        """Slot s computes its last rows_of_slots[s] positions out of lengths[s]."""
        rng = np.random.default_rng()
        width = width or -(-max([*lengths, 1]) // block_size) + 1
        blocks = rng.permutation(len(lengths) * width + 2)
        block_tables = np.full((len(lengths), width), -1, np.int32)
        shape = (len(blocks), kv_heads, block_size, head_dim)
        cache = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
        for slot, length in enumerate(lengths):
            used = -(-length // block_size)
            block_tables[slot, :used] = blocks[slot * width : slot * width + used]
            for position in range(length):
                at = block_tables[slot, position // block_size], slice(None), position % block_size
                for part in cache:
                    part[at] = round_to(rng.normal(size=(kv_heads, head_dim)), dtype)
        rows = [
            (slot, length - n + i) for slot, (n, length) in enumerate(zip(rows_of_slots, lengths)) for i in range(n)
        ]
        rows += [(-1, 0)] * padding
        slots, positions = (np.array(column, np.int32) for column in zip(*rows))
        qkv = round_to(rng.normal(size=(len(rows), (q_heads + 2 * kv_heads) * head_dim)), dtype)
        cu_seqlens_q = np.cumsum([0, *rows_of_slots]).astype(np.int32)
        return Case(
            dtype, block_size, q_heads, kv_heads, head_dim, qkv, cache, block_tables, positions, slots, cu_seqlens_q
        )

    def expected(self):
        """What the twin computes."""
        k, v = (np.nan_to_num(part) for part in self.cache)
        return twins.paged_attention(
            self.qkv, k.transpose(0, 1, 3, 2), v, self.block_tables, self.positions, self.slots, self.q_heads,
            self.kv_heads, self.head_dim**-0.5,
        )  # fmt: skip

    def compute(self, together: bool, rows: slice = slice(None), **options):
        """What the GPU computes, rows of a slot together or each on its own."""
        k, v = (gpu(part, self.dtype) for part in self.cache)
        tensors = [gpu(array) for array in (self.block_tables, self.positions[rows], self.slots[rows])]
        if together:
            longest = int(np.diff(self.cu_seqlens_q).max())
            options |= {"cu_seqlens_q": gpu(self.cu_seqlens_q), "max_rows_per_slot": max(longest, 1)}
        qkv = gpu(self.qkv[rows], self.dtype)
        poison()
        out = ops.paged_attention(qkv, k, v, *tensors, self.q_heads, self.kv_heads, self.head_dim**-0.5, **options)
        return host(out)


SHAPES = [
    (16, 1, 1, 64),
    (16, 9, 3, 64),
    (32, 4, 2, 80),
    (64, 32, 8, 128),
    (16, 14, 2, 96),
    (32, 8, 8, 128),
    (256, 16, 1, 64),
    (16, 10, 2, 64),
    (64, 15, 3, 128),
]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("block_size", "q_heads", "kv_heads", "head_dim"), SHAPES)
@pytest.mark.parametrize("together", [False, True])
def test_decoding_equals_twin(together, block_size, q_heads, kv_heads, head_dim, dtype):
    lengths = [1, 15, 16, 17, 64, 65, 255, 256, 257, 300, 700]
    case = Case.random([1] * len(lengths), lengths, block_size, q_heads, kv_heads, head_dim, dtype, padding=3)
    result = case.compute(together)
    assert relative_error(result, case.expected()) < TOLERANCE[dtype]
    assert not result[-3:].any()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("block_size", "q_heads", "kv_heads", "head_dim"), SHAPES)
@pytest.mark.parametrize("batch_invariant", [False, True])
def test_chunks_and_mixed_steps_equal_twin(batch_invariant, block_size, q_heads, kv_heads, head_dim, dtype):
    rows, lengths = [0, 2, 1, 70, 0, 129, 1, 33, 0], [9, 2, 400, 70, 5, 300, 3, 290, 1]
    case = Case.random(rows, lengths, block_size, q_heads, kv_heads, head_dim, dtype, padding=2)
    result = case.compute(together=True, batch_invariant=batch_invariant)
    assert relative_error(result, case.expected()) < TOLERANCE[dtype]
    assert not result[-2:].any()


@pytest.mark.parametrize(("block_size", "q_heads", "kv_heads", "head_dim"), SHAPES)
def test_batch_invariant_chunk_has_the_bits_of_single_rows(block_size, q_heads, kv_heads, head_dim):
    rows, lengths = [70, 129, 1], [70, 600, 270]
    case = Case.random(rows, lengths, block_size, q_heads, kv_heads, head_dim, "bfloat16", width=64)
    whole = case.compute(together=True, batch_invariant=True)
    np.testing.assert_array_equal(case.compute(together=False, batch_invariant=True), whole)
    np.testing.assert_array_equal(case.compute(False, slice(60, 83), batch_invariant=True), whole[60:83])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("q_heads", "kv_heads", "head_dim"), [(9, 3, 64), (4, 1, 128), (3, 3, 128)])
def test_prompts_over_many_tiles_equal_twin(q_heads, kv_heads, head_dim, dtype):
    case = Case.random([300, 2, 257, 128], [1100, 1025, 257, 640], 16, q_heads, kv_heads, head_dim, dtype)
    result = case.compute(together=True)
    assert relative_error(result, case.expected()) < TOLERANCE[dtype]
    np.testing.assert_array_equal(case.compute(together=True), result)


@pytest.mark.parametrize("width", [256, 1024])
def test_long_context_is_split_into_many_or_longer_parts(width):
    case = Case.random([1, 2], [3000, 2100], 16, 4, 2, 64, "float16", width=width)
    for together in (False, True):
        for batch_invariant in (False, True):
            result = case.compute(together, batch_invariant=batch_invariant)
            assert relative_error(result, case.expected()) < TOLERANCE["float16"]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("block_size", "q_heads", "kv_heads", "head_dim"), SHAPES)
def test_rotary_kv_write_equals_twin(block_size, q_heads, kv_heads, head_dim, dtype):
    case = Case.random([1, 3, 0, 40], [5, 3, 7, 50], block_size, q_heads, kv_heads, head_dim, dtype, padding=2)
    rng = np.random.default_rng()
    cos_sin = rng.normal(size=(64, head_dim)).astype(np.float32)
    k, v = case.cache
    qkv_gpu, k_gpu, v_gpu = gpu(case.qkv, dtype), gpu(k, dtype), gpu(v, dtype)
    ops.rotary_kv_write(
        qkv_gpu,
        gpu(cos_sin),
        gpu(case.positions),
        gpu(case.slots),
        gpu(case.block_tables),
        k_gpu,
        v_gpu,
        q_heads,
        kv_heads,
    )
    expected_k, expected_v = k.transpose(0, 1, 3, 2).copy(), v.copy()
    before = case.qkv.copy()
    twins.rotary_kv_write(
        case.qkv, cos_sin, case.positions, case.slots, case.block_tables, expected_k, expected_v, q_heads, kv_heads
    )
    result = host(qkv_gpu)
    assert relative_error(result, case.qkv) < TOLERANCE[dtype]
    np.testing.assert_array_equal(result[:, q_heads * head_dim :], before[:, q_heads * head_dim :])
    written = expected_k.transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(np.isnan(host(k_gpu)), np.isnan(written))
    assert relative_error(np.nan_to_num(host(k_gpu)), np.nan_to_num(written)) < TOLERANCE[dtype]
    np.testing.assert_array_equal(host(v_gpu), expected_v)


def test_rows_without_a_place_in_the_cache_write_nothing():
    case = Case.random([3], [20], 16, 2, 1, 64, "bfloat16")
    case.positions[:] = [-1, 10_000, 40]
    k, v = (gpu(part, "bfloat16") for part in case.cache)
    qkv = gpu(case.qkv, "bfloat16")
    ops.rotary_kv_write(
        qkv,
        gpu(np.ones((64, 64), np.float32)),
        gpu(case.positions),
        gpu(case.slots),
        gpu(case.block_tables),
        k,
        v,
        2,
        1,
    )
    np.testing.assert_array_equal(host(k), case.cache[0])
    np.testing.assert_array_equal(host(qkv), case.qkv)
