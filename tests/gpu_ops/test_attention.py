"""Rotary embedding, cache write and paged attention: agreement with their NumPy twins, bits that depend on the row alone, and
refusals that name the argument."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_ops import forward as ops
from gpu_ops.kv_cache import CPU_TYPES, kv_block_bytes, kv_cache_shape
from gpu_ops.twins import forward as twins
from gpu_ops.twins import kv_cache
from tests.gpu_ops.tensors import REFUSED, assert_bits_equal, normal, tensor

pytestmark = pytest.mark.usefixtures("one_thread_afterwards")


EMPTY = {
    "float32": lambda shape: np.full(shape, np.nan, np.float32),
    "bfloat16": lambda shape: np.full(shape, 0x7FC0, np.uint16),
    # Of scales, which lie among them, all bits make a NaN.
    "int8": lambda shape: np.full(shape, -1, np.int8),
}


def attention_case(
    lengths: list[int],
    q_heads: int,
    kv_heads: int,
    dim: int,
    block_size: int,
    seed: int = 0,
    dtype: str = "float32",
) -> SimpleNamespace:
    """Whole prompts of the given lengths, one a slot, with shuffled blocks, padding rows and a cache full of NaN."""
    rng = np.random.default_rng(seed)
    blocks_each = -(-max(lengths) // block_size)
    total = blocks_each * len(lengths)
    k_shape, v_shape = kv_cache_shape(total, block_size, kv_heads, dim, dtype)
    angles = rng.uniform(0, 6, (blocks_each * block_size, dim // 2))
    slots = np.concatenate([np.full(n, slot) for slot, n in enumerate(lengths)] + [np.full(2, -1)]).astype(np.int32)
    return SimpleNamespace(
        heads=(q_heads, kv_heads),
        scale=dim**-0.5,
        qkv=normal(np.random.default_rng(seed + 1), sum(lengths) + 2, (q_heads + 2 * kv_heads) * dim),
        cos_sin=np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32),
        k_cache=EMPTY[dtype](k_shape),
        v_cache=EMPTY[dtype](v_shape),
        block_tables=rng.permutation(total).reshape(len(lengths), -1).astype(np.int32),
        positions=np.concatenate([*map(np.arange, lengths), np.zeros(2)]).astype(np.int32),
        slots=slots,
    )


def run_rows(case: SimpleNamespace, chunks: list[np.ndarray]) -> np.ndarray:
    """Write and attend the rows chunk by chunk through one cache; the attention's output in the order of the rows."""
    k_cache, v_cache, tables = tensor(case.k_cache), tensor(case.v_cache), tensor(case.block_tables)
    out = np.zeros((len(case.qkv), case.heads[0] * case.cos_sin.shape[1]), np.float32)
    for rows in chunks:
        qkv, positions, slots = tensor(case.qkv[rows]), tensor(case.positions[rows]), tensor(case.slots[rows])
        ops.rotary_kv_write(qkv, tensor(case.cos_sin), positions, slots, tables, k_cache, v_cache, *case.heads)
        attended = ops.paged_attention(qkv, k_cache, v_cache, tables, positions, slots, *case.heads, case.scale)
        out[rows] = attended.numpy()
    return out


def write(case: SimpleNamespace) -> None:
    """The twin's cache of the case, in place."""
    twins.rotary_kv_write(
        case.qkv, case.cos_sin, case.positions, case.slots, case.block_tables, case.k_cache, case.v_cache, *case.heads
    )


def attend(case: SimpleNamespace, qkv: np.ndarray, k_cache: np.ndarray, v_cache: np.ndarray) -> np.ndarray:
    """The op's output over a cache as it stands."""
    place = tensor(case.block_tables), tensor(case.positions), tensor(case.slots)
    return ops.paged_attention(
        tensor(qkv), tensor(k_cache), tensor(v_cache), *place, *case.heads, case.scale
    ).numpy()  # fmt: skip


@pytest.mark.parametrize("dtype", CPU_TYPES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "dim", "block_size"),
    [(9, 3, 64, 16), (4, 4, 16, 32), (6, 2, 80, 64), (8, 2, 128, 16), (26, 2, 24, 16), (1, 1, 8, 256), (5, 1, 256, 16)],
)
def test_attention_agrees_with_its_twin(threads, q_heads, kv_heads, dim, block_size, dtype):
    ops.set_num_threads(threads)
    case = attention_case([1, 37, 300, 64], q_heads, kv_heads, dim, block_size, dtype=dtype)
    qkv, k_cache, v_cache = tensor(case.qkv), tensor(case.k_cache), tensor(case.v_cache)
    tables, positions, slots = tensor(case.block_tables), tensor(case.positions), tensor(case.slots)
    ops.rotary_kv_write(qkv, tensor(case.cos_sin), positions, slots, tables, k_cache, v_cache, q_heads, kv_heads)
    write(case)
    np.testing.assert_allclose(qkv.numpy(), case.qkv, rtol=0, atol=2e-6)
    keys, scales = kv_cache.parts(k_cache.numpy())
    expected_keys, expected_scales = kv_cache.parts(case.k_cache)
    if dtype == "float32":
        np.testing.assert_allclose(keys, expected_keys, rtol=0, atol=2e-6)
    else:
        # The rotation differs by rounding, which may fall to the other side here: rarely, and by one.
        distance = np.abs(keys.astype(np.int32) - expected_keys)
        assert distance.max() <= 1 and distance.mean() < 1e-3
    if scales is not None:
        np.testing.assert_allclose(scales[:, :, 0], expected_scales[:, :, 0], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(scales[:, :, 1], expected_scales[:, :, 1])
    np.testing.assert_array_equal(v_cache.numpy(), case.v_cache)
    actual = attend(case, case.qkv, case.k_cache, case.v_cache)
    expected = twins.paged_attention(
        case.qkv, case.k_cache, case.v_cache, case.block_tables, case.positions, case.slots, *case.heads, case.scale
    )
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6)
    assert not actual[-2:].any()


@st.composite
def vectors(draw):
    """Vectors [rows, dim] of very different sizes, some with ties, zeros, subnormals, or numbers that are not finite."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, dim = draw(st.integers(1, 20)), draw(st.sampled_from([8, 16, 24, 64, 80]))
    x = normal(rng, rows, dim) * np.float32(2) ** rng.integers(-140, 100, (rows, 1)).astype(np.float32)
    kind = rng.integers(0, 6, rows)
    x[kind == 0] = 0
    x[kind == 1] = rng.integers(-254, 255, (rows, dim))[kind == 1] / np.float32(
        2
    )  # halves: ties of int8 where 127 leads
    x[kind == 1, 0] = 127
    x[kind == 2] = (x[kind == 2].view(np.uint32) & 0xFFFF0000 | 0x8000).view(np.float32)  # ties of bfloat16
    for row in np.flatnonzero(kind == 3):
        x[row, rng.integers(dim)] = rng.choice([np.nan, np.inf, -np.inf, 3e38])
    return x


@pytest.mark.parametrize("dtype", CPU_TYPES)
@settings(max_examples=60, deadline=None)
@given(vectors(), st.sampled_from([16, 32]))
def test_what_is_stored_of_any_vector_has_the_bits_of_the_twin(dtype, x, block_size):
    rows, dim = x.shape
    case = attention_case([rows], 1, 1, dim, block_size, dtype=dtype)
    case.cos_sin[:] = np.repeat([1, 0], dim // 2)  # a rotation by nothing
    case.qkv[:rows] = np.concatenate([x, x, x[::-1]], axis=1)
    k_cache, v_cache = tensor(case.k_cache), tensor(case.v_cache)
    place = tensor(case.positions), tensor(case.slots), tensor(case.block_tables)
    ops.rotary_kv_write(tensor(case.qkv), tensor(case.cos_sin), *place, k_cache, v_cache, *case.heads)
    with np.errstate(all="ignore"):
        write(case)
    np.testing.assert_array_equal(v_cache.numpy(), case.v_cache)
    if np.isfinite(x).all():  # 0 * infinity is a NaN of either sign
        np.testing.assert_array_equal(k_cache.numpy(), case.k_cache)


def test_a_stored_vector_is_near_the_one_that_came():
    x = normal(np.random.default_rng(0), 500, 64)
    for dtype, step in ((np.dtype(np.uint16), np.abs(x) * 2**-8), (np.dtype(np.int8), np.abs(x).max(1)[:, None] / 254)):
        stored, scales = kv_cache.store(x, dtype)
        back = kv_cache.numbers(stored) * (1 if scales is None else scales[:, None])
        assert (np.abs(back - x) <= step * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "dim", "block_size"), [(9, 3, 64, 16), (26, 2, 24, 32), (5, 1, 80, 64)]
)
def test_stored_numbers_are_summed_as_the_same_numbers_in_float32(q_heads, kv_heads, dim, block_size, dtype):
    """Bit for bit; with scales that are powers of two, so that it does not matter where they are applied."""
    case = attention_case([1, 37, 300, 64], q_heads, kv_heads, dim, block_size, dtype=dtype)
    write(case)
    keys, scales = kv_cache.parts(case.k_cache)
    values = kv_cache.numbers(case.v_cache)
    if scales is not None:
        scales[:] = np.float32(2) ** np.random.default_rng(0).integers(-9, -5, scales.shape).astype(np.float32)
        keys = kv_cache.numbers(keys) * scales[:, :, :1]
        values = values * scales[:, :, 1, :, None]
    plain = attend(case, case.qkv, np.ascontiguousarray(kv_cache.numbers(keys)), values)
    assert_bits_equal(attend(case, case.qkv, case.k_cache, case.v_cache), plain)


@pytest.mark.parametrize("dtype", CPU_TYPES)
@pytest.mark.parametrize("group", [1, 3, 4, 7, 16])
def test_attention_of_chunks_and_decode_equals_the_whole_prompt(group, dtype):
    case = attention_case([530, 70], 2 * group, 2, 64, 16, dtype=dtype)
    everything = np.arange(len(case.qkv))
    whole = run_rows(case, [everything])
    rng = np.random.default_rng(group)
    for threads in (1, 2, 3):
        ops.set_num_threads(threads)
        cuts = np.sort(rng.choice(530, 6, replace=False))
        chunks = [chunk for chunk in np.split(everything, cuts) if len(chunk)]
        assert_bits_equal(run_rows(case, chunks), whole)
    decoded = [everything[:500], *([row] for row in range(500, 530)), everything[530:]]
    assert_bits_equal(run_rows(case, [np.asarray(rows) for rows in decoded]), whole)


@pytest.mark.parametrize("dtype", CPU_TYPES)
def test_attention_row_does_not_depend_on_neighbours_slots_or_block_size(dtype):
    alone = attention_case([300], 6, 2, 80, 16, dtype=dtype)
    expected = run_rows(alone, [np.arange(300)])[:300]
    for block_size in (16, 32, 64):
        crowd = attention_case([20, 300, 41], 6, 2, 80, block_size, seed=9, dtype=dtype)
        crowd.qkv[20:320] = alone.qkv[:300]
        crowd.cos_sin[:300] = alone.cos_sin[:300]
        assert_bits_equal(run_rows(crowd, [np.arange(363)])[20:320], expected)


@pytest.mark.parametrize("dtype", CPU_TYPES)
def test_attention_of_a_long_history_splits_over_threads_with_the_same_bits(dtype):
    case = attention_case([1500], 3, 1, 64, 32, dtype=dtype)
    prefill = np.arange(1499)
    single = run_rows(case, [prefill, np.array([1499])])
    ops.set_num_threads(2)
    assert_bits_equal(run_rows(case, [prefill, np.array([1499])]), single)


def test_rotary_kv_write_refuses_non_contiguous_tensors():
    case = attention_case([4], 1, 1, 8, 16)
    arguments = [case.qkv, case.cos_sin, case.positions, case.slots, case.block_tables, case.k_cache, case.v_cache]
    for index, name in ((0, "qkv"), (5, "k_cache"), (6, "v_cache")):
        tensors = [tensor(a) for a in arguments]
        tensors[index] = paddle.concat([tensors[index]] * 2, axis=-1)[..., : arguments[index].shape[-1]]
        with pytest.raises(ValueError, match=name):
            ops.rotary_kv_write(*tensors, *case.heads)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": (3, 2)}, "q_heads"),
        ({"positions": np.arange(5, dtype=np.int32)}, "positions"),
        ({"slots": np.zeros(6, np.int64)}, "batch_id_per_token"),
        ({"block_tables": np.zeros(4, np.int32)}, "block_tables"),
        ({"block_tables": np.full((1, 1), -1, np.int32)}, "block_tables"),
        ({"block_tables": np.full((1, 1), 7, np.int32)}, "block_tables"),
        ({"positions": np.full(6, 16, np.int32)}, "positions"),
        ({"positions": np.full(6, -1, np.int32)}, "positions"),
        ({"slots": np.full(6, 1, np.int32)}, "batch_id_per_token"),
        ({"v_cache": np.zeros((1, 1, 16, 9), np.float32)}, "v_cache"),
        ({"v_cache": np.zeros((1, 1, 16, 8), np.int8)}, "v_cache"),
        ({"k_cache": np.zeros((1, 1, 8, 16), np.int32)}, "k_cache.*needs float32, bfloat16 or int8"),
        ({"k_cache": np.zeros((1, 1, 8, 16), np.int8)}, "head size of 0"),
    ],
)  # fmt: skip
def test_attention_ops_refuse_what_would_leave_their_tensors(change, message):
    case = attention_case([4], 1, 1, 8, 16)
    case.__dict__.update(change)
    qkv, cos_sin, positions, slots, tables, k_cache, v_cache = (
        tensor(a)
        for a in (case.qkv, case.cos_sin, case.positions, case.slots, case.block_tables, case.k_cache, case.v_cache)
    )
    with pytest.raises(REFUSED, match=message):
        ops.rotary_kv_write(qkv, cos_sin, positions, slots, tables, k_cache, v_cache, *case.heads)
    np.testing.assert_array_equal(qkv.numpy(), case.qkv)
    with pytest.raises(REFUSED, match=message):
        ops.paged_attention(qkv, k_cache, v_cache, tables, positions, slots, *case.heads, 1.0)


@pytest.mark.parametrize("dtype", CPU_TYPES)
def test_the_bytes_of_a_block_are_those_of_its_arrays(dtype):
    shapes = kv_cache_shape(7, 32, 3, 80, dtype)
    assert 7 * kv_block_bytes(32, 3, 80, dtype) == sum(EMPTY[dtype](shape).nbytes for shape in shapes)
