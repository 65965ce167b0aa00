"""Rotary embedding, cache write and paged attention: agreement with their NumPy twins, bits that depend on the row alone, and
refusals that name the argument."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from gpu_ops import forward as ops
from gpu_ops.twins import forward as twins
from tests.gpu_ops.tensors import REFUSED, assert_bits_equal, normal, tensor

pytestmark = pytest.mark.usefixtures("one_thread_afterwards")


def attention_case(
    lengths: list[int], q_heads: int, kv_heads: int, dim: int, block_size: int, seed: int = 0
) -> SimpleNamespace:
    """Whole prompts of the given lengths, one a slot, with shuffled blocks, padding rows and a cache full of NaN."""
    rng = np.random.default_rng(seed)
    blocks_each = -(-max(lengths) // block_size)
    total = blocks_each * len(lengths)
    k_shape, v_shape = ops.kv_cache_shape(total, block_size, kv_heads, dim)
    angles = rng.uniform(0, 6, (blocks_each * block_size, dim // 2))
    slots = np.concatenate([np.full(n, slot) for slot, n in enumerate(lengths)] + [np.full(2, -1)]).astype(np.int32)
    return SimpleNamespace(
        heads=(q_heads, kv_heads),
        scale=dim**-0.5,
        qkv=normal(np.random.default_rng(seed + 1), sum(lengths) + 2, (q_heads + 2 * kv_heads) * dim),
        cos_sin=np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32),
        k_cache=np.full(k_shape, np.nan, np.float32),
        v_cache=np.full(v_shape, np.nan, np.float32),
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


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("q_heads", "kv_heads", "dim", "block_size"),
    [(9, 3, 64, 16), (4, 4, 16, 32), (6, 2, 80, 64), (8, 2, 128, 16), (26, 2, 24, 16), (1, 1, 8, 256), (5, 1, 256, 16)],
)
def test_attention_agrees_with_its_twin(threads, q_heads, kv_heads, dim, block_size):
    ops.set_num_threads(threads)
    case = attention_case([1, 37, 300, 64], q_heads, kv_heads, dim, block_size)
    qkv, k_cache, v_cache = tensor(case.qkv), tensor(case.k_cache), tensor(case.v_cache)
    tables, positions, slots = tensor(case.block_tables), tensor(case.positions), tensor(case.slots)
    ops.rotary_kv_write(qkv, tensor(case.cos_sin), positions, slots, tables, k_cache, v_cache, q_heads, kv_heads)
    twins.rotary_kv_write(
        case.qkv,
        case.cos_sin,
        case.positions,
        case.slots,
        case.block_tables,
        case.k_cache,
        case.v_cache,
        q_heads,
        kv_heads,
    )
    np.testing.assert_allclose(qkv.numpy(), case.qkv, rtol=0, atol=2e-6)
    np.testing.assert_allclose(k_cache.numpy(), case.k_cache, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(v_cache.numpy(), case.v_cache)
    actual = ops.paged_attention(qkv, k_cache, v_cache, tables, positions, slots, q_heads, kv_heads, case.scale)
    expected = twins.paged_attention(
        case.qkv,
        case.k_cache,
        case.v_cache,
        case.block_tables,
        case.positions,
        case.slots,
        q_heads,
        kv_heads,
        case.scale,
    )
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=5e-6)
    assert not actual.numpy()[-2:].any()


@pytest.mark.parametrize("group", [1, 3, 4, 7, 16])
def test_attention_of_chunks_and_decode_equals_the_whole_prompt(group):
    case = attention_case([530, 70], 2 * group, 2, 64, 16)
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


def test_attention_row_does_not_depend_on_neighbours_slots_or_block_size():
    alone = attention_case([300], 6, 2, 80, 16)
    expected = run_rows(alone, [np.arange(300)])[:300]
    for block_size in (16, 32, 64):
        crowd = attention_case([20, 300, 41], 6, 2, 80, block_size, seed=9)
        crowd.qkv[20:320] = alone.qkv[:300]
        crowd.cos_sin[:300] = alone.cos_sin[:300]
        assert_bits_equal(run_rows(crowd, [np.arange(363)])[20:320], expected)


def test_attention_of_a_long_history_splits_over_threads_with_the_same_bits():
    case = attention_case([1500], 3, 1, 64, 32)
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
