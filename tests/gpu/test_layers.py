"""Norms, activation and row gathers on the GPU against their twins."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_ops import forward as ops
from gpu_ops import sampling
from gpu_ops.twins import forward as twins
from tests.gpu.parts.tensors import HALVES, TOLERANCE, gpu, host, poison, relative_error, round_to

SHAPES = [(1, 8), (3, 576), (5, 4096), (17, 5120), (2, 18432)]


def normal(rng, *shape, dtype):
    """Random values that the type can hold."""
    return round_to(rng.normal(size=shape), dtype)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "hidden"), SHAPES)
def test_rms_norm_equals_twin(rows, hidden, dtype):
    rng = np.random.default_rng()
    x, weight = normal(rng, rows, hidden, dtype=dtype), normal(rng, hidden, dtype=dtype)
    x_gpu, weight_gpu = gpu(x, dtype), gpu(weight, dtype)
    poison()
    assert (
        relative_error(host(ops.rms_norm(x_gpu, weight_gpu, 1e-5)), twins.rms_norm(x, weight, 1e-5)) < TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "hidden"), SHAPES)
def test_add_rms_norm_equals_twin(rows, hidden, dtype):
    rng = np.random.default_rng()
    x, residual = normal(rng, rows, hidden, dtype=dtype), normal(rng, rows, hidden, dtype=dtype)
    weight = normal(rng, hidden, dtype=dtype)
    x_gpu, residual_gpu, weight_gpu = gpu(x, dtype), gpu(residual, dtype), gpu(weight, dtype)
    poison()
    out = host(ops.add_rms_norm(x_gpu, residual_gpu, weight_gpu, 1e-5))
    expected = twins.add_rms_norm(x, residual, weight, 1e-5)
    assert relative_error(out, expected) < TOLERANCE[dtype]
    np.testing.assert_array_equal(host(residual_gpu), round_to(residual, dtype))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "hidden"), SHAPES)
def test_rms_norm_add_equals_twin(rows, hidden, dtype):
    rng = np.random.default_rng()
    x, residual = normal(rng, rows, hidden, dtype=dtype), normal(rng, rows, hidden, dtype=dtype)
    weight = normal(rng, hidden, dtype=dtype)
    residual_gpu = gpu(residual, dtype)
    ops.rms_norm_add(gpu(x, dtype), residual_gpu, gpu(weight, dtype), 1e-5)
    twins.rms_norm_add(x, residual, weight, 1e-5)
    assert relative_error(host(residual_gpu), residual) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "q_width", "kv_width"), [(1, 64, 64), (5, 4096, 1024), (3, 560, 80)])
def test_projection_norm_equals_twin(rows, q_width, kv_width, dtype):
    rng = np.random.default_rng()
    qkv = normal(rng, rows, q_width + 2 * kv_width, dtype=dtype)
    q_weight, k_weight = normal(rng, q_width, dtype=dtype), normal(rng, kv_width, dtype=dtype)
    qkv_gpu = gpu(qkv, dtype)
    ops.projection_norm(qkv_gpu, gpu(q_weight, dtype), gpu(k_weight, dtype), 1e-6)
    values = qkv[:, -kv_width:].copy()
    twins.projection_norm(qkv, q_weight, k_weight, 1e-6)
    result = host(qkv_gpu)
    assert relative_error(result, qkv) < TOLERANCE[dtype]
    np.testing.assert_array_equal(result[:, -kv_width:], values)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "q_heads", "kv_heads", "head_dim"), [(1, 1, 1, 64), (5, 16, 8, 128), (3, 7, 1, 80)])
def test_qk_norm_equals_twin(rows, q_heads, kv_heads, head_dim, dtype):
    rng = np.random.default_rng()
    qkv = normal(rng, rows, (q_heads + 2 * kv_heads) * head_dim, dtype=dtype)
    q_weight, k_weight = normal(rng, head_dim, dtype=dtype), normal(rng, head_dim, dtype=dtype)
    qkv_gpu = gpu(qkv, dtype)
    values = qkv[:, -kv_heads * head_dim :].copy()
    ops.qk_norm(qkv_gpu, gpu(q_weight, dtype), gpu(k_weight, dtype), q_heads, kv_heads, 1e-6)
    twins.qk_norm(qkv, q_weight, k_weight, q_heads, kv_heads, 1e-6)
    result = host(qkv_gpu)
    assert relative_error(result, qkv) < TOLERANCE[dtype]
    np.testing.assert_array_equal(result[:, -kv_heads * head_dim :], values)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "inner"), [(1, 8), (3, 1536), (9, 14336)])
def test_swiglu_equals_twin(rows, inner, dtype):
    gate_up = normal(np.random.default_rng(), rows, 2 * inner, dtype=dtype) * 4
    gate_up_gpu = gpu(gate_up, dtype)
    poison()
    assert relative_error(host(ops.swiglu(gate_up_gpu)), twins.swiglu(gate_up)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "vocab", "hidden"), [(1, 1, 8), (7, 100, 576), (33, 1000, 4096)])
def test_embedding_and_gather_equal_twins(rows, vocab, hidden, dtype):
    rng = np.random.default_rng()
    table = normal(rng, vocab, hidden, dtype=dtype)
    ids = rng.integers(-2, vocab + 2, rows)
    table_gpu, ids_gpu, rows_gpu = gpu(table, dtype), gpu(ids), gpu(ids.astype(np.int32))
    poison()
    np.testing.assert_array_equal(host(ops.embedding(table_gpu, ids_gpu, vocab)), twins.embedding(table, ids, vocab))
    kept = normal(rng, rows + 2, hidden, dtype=dtype)
    gathered = gpu(kept, dtype)
    sampling.gather_last_tokens(table_gpu, rows_gpu, gathered)
    np.testing.assert_array_equal(host(gathered)[:rows], twins.embedding(table, ids, vocab))
    np.testing.assert_array_equal(host(gathered)[rows:], kept[rows:])


REFUSED = (RuntimeError, ValueError, OSError)


def test_float32_on_the_gpu_is_refused_by_name():
    with pytest.raises(REFUSED, match="x: has dtype float32, needs float16 or bfloat16"):
        ops.rms_norm(gpu(np.ones((2, 8), np.float32)), gpu(np.ones(8, np.float32)), 1e-5)


def test_tensors_in_two_places_are_refused_by_name():
    import paddle

    weight = paddle.to_tensor(np.ones(8, np.float16), place=paddle.CPUPlace())
    with pytest.raises(REFUSED, match="weight: lies elsewhere than x"):
        ops.rms_norm(gpu(np.ones((2, 8)), "float16"), weight, 1e-5)
