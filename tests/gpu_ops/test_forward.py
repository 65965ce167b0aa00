"""Matmuls, embedding and norms: agreement with their NumPy twins, results that depend on the row alone, and refusals that name
the argument. Attention: ``test_attention``."""

from __future__ import annotations

import threading
import time

import numpy as np
import paddle
import pytest

from gpu_ops import forward as ops
from gpu_ops.kv_cache import kv_cache_shape
from gpu_ops.twins import forward as twins
from tests.gpu_ops.tensors import REFUSED, assert_bits_equal, normal, tensor

EPS = 1e-5

pytestmark = pytest.mark.usefixtures("one_thread_afterwards")


# linear, embedding


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("rows", "out_features", "in_features"),
    [(1, 1, 1), (1, 960, 576), (2, 31, 17), (7, 33, 385), (12, 64, 384), (13, 70, 5), (25, 100, 769), (49, 96, 96),
     (61, 130, 400), (200, 257, 33), (3, 48, 14336)],
)  # fmt: skip
def test_linear_agrees_with_its_twin(threads, rows, out_features, in_features):
    rng = np.random.default_rng(rows)
    ops.set_num_threads(threads)
    weight, x, bias = normal(rng, out_features, in_features), normal(rng, rows, in_features), normal(rng, out_features)
    packed = ops.pack_weight(tensor(weight))
    np.testing.assert_array_equal(packed.numpy(), twins.pack_weight(weight))
    for b in (None, bias):
        actual = ops.linear(tensor(x), packed, out_features, None if b is None else tensor(b)).numpy()
        expected = twins.linear(x.astype(np.float64), packed.numpy().astype(np.float64), out_features, b)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * in_features**0.5 * 8)


def test_linear_sums_in_ascending_order_from_the_bias():
    rng = np.random.default_rng(0)
    weight, x, bias = normal(rng, 5, 700), normal(rng, 1, 700), normal(rng, 5)
    # A product of two floats is exact in float64, so adding there and rounding once is a fused multiply-add, but for the
    # rare double rounding, which this seed does not meet.
    total = bias.copy()
    for k in range(700):
        total = (x[0, k] * weight[:, k].astype(np.float64) + total).astype(np.float32)
    assert_bits_equal(ops.linear(tensor(x), ops.pack_weight(tensor(weight)), 5, tensor(bias)).numpy()[0], total)


def test_linear_row_does_not_depend_on_the_row_count():
    rng = np.random.default_rng(1)
    x, weight = normal(rng, 300, 400), normal(rng, 70, 400)
    packed = ops.pack_weight(tensor(weight))
    ops.set_num_threads(2)
    whole = ops.linear(tensor(x), packed, 70).numpy()
    for rows in range(1, 301):
        assert_bits_equal(ops.linear(tensor(x[:rows]), packed, 70).numpy(), whole[:rows])


def test_linear_row_does_not_depend_on_its_neighbours_or_position():
    rng = np.random.default_rng(2)
    row, packed = normal(rng, 1, 576), ops.pack_weight(tensor(normal(rng, 96, 576)))
    alone = ops.linear(tensor(row), packed, 96).numpy()[0]
    for rows in (2, 8, 30, 64):
        for position in (0, rows // 2, rows - 1):
            x = normal(rng, rows, 576) * 1e6
            x[position] = row
            assert_bits_equal(ops.linear(tensor(x), packed, 96).numpy()[position], alone)


@pytest.mark.parametrize("rows", [1, 8, 20, 100])
def test_linear_does_not_depend_on_the_thread_count(rows):
    rng = np.random.default_rng(rows)
    x, weight = normal(rng, rows, 1536), normal(rng, 500, 1536)
    results = []
    for threads in (1, 2, 3):
        ops.set_num_threads(threads)
        results.append(ops.linear(tensor(x), ops.pack_weight(tensor(weight)), 500).numpy())
    assert_bits_equal(results[1], results[0])
    assert_bits_equal(results[2], results[0])


def test_linear_from_several_threads_at_once():
    rng = np.random.default_rng(3)
    x, weight = normal(rng, 30, 576), normal(rng, 960, 576)
    ops.set_num_threads(3)
    packed, x_tensor = ops.pack_weight(tensor(weight)), tensor(x)
    expected = ops.linear(x_tensor, packed, 960).numpy()
    results: list[np.ndarray] = []

    def call() -> None:
        for _ in range(30):
            results.append(ops.linear(x_tensor, packed, 960).numpy())

    callers = [threading.Thread(target=call) for _ in range(3)]
    for caller in callers:
        caller.start()
    for threads in (1, 2, 3):  # while they run
        ops.set_num_threads(threads)
    for caller in callers:
        caller.join()
    assert len(results) == 90
    for result in results:
        assert_bits_equal(result, expected)


def test_idle_helpers_sleep():
    ops.set_num_threads(2, spin_microseconds=100)
    packed = ops.pack_weight(tensor(np.ones((960, 576), np.float32)))
    ops.linear(paddle.ones([1, 576]), packed, 960)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.2


@pytest.mark.parametrize(("vocab", "hidden", "rows"), [(1, 1, 1), (70, 33, 9), (64, 576, 40), (131, 80, 300)])
def test_embedding_agrees_with_its_twin(vocab, hidden, rows):
    rng = np.random.default_rng(rows)
    table = normal(rng, vocab, hidden)
    ids = rng.integers(-2, vocab + 2, rows)
    ids[:1] = vocab - 1
    expected = twins.embedding(table, ids, vocab)
    ops.set_num_threads(2)
    np.testing.assert_array_equal(ops.embedding(tensor(table), tensor(ids), vocab).numpy(), expected)
    packed = ops.pack_weight(tensor(table))
    np.testing.assert_array_equal(ops.embedding(packed, tensor(ids), vocab).numpy(), expected)


# norms, activation


@pytest.mark.parametrize(("rows", "hidden"), [(1, 1), (3, 15), (5, 16), (1, 576), (9, 577), (130, 960)])
def test_norms_agree_with_their_twins(rows, hidden):
    rng = np.random.default_rng(hidden)
    x, residual, weight = normal(rng, rows, hidden), normal(rng, rows, hidden), normal(rng, hidden)
    np.testing.assert_allclose(
        ops.rms_norm(tensor(x), tensor(weight), EPS).numpy(), twins.rms_norm(x, weight, EPS), rtol=2e-6, atol=1e-6
    )
    residual_tensor = tensor(residual)
    actual = ops.add_rms_norm(tensor(x), residual_tensor, tensor(weight), EPS).numpy()
    expected = twins.add_rms_norm(x, residual, weight, EPS)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(residual_tensor.numpy(), residual)
    ops.rms_norm_add(tensor(x), residual_tensor, tensor(weight), EPS)
    twins.rms_norm_add(x, residual, weight, EPS)
    np.testing.assert_allclose(residual_tensor.numpy(), residual, rtol=2e-6, atol=1e-6)


def test_a_norm_is_added_with_the_bits_of_a_norm_and_an_addition():
    rng = np.random.default_rng(5)
    x, residual, weight = (tensor(normal(rng, *shape)) for shape in ((9, 577), (9, 577), (577,)))
    expected = (residual + ops.rms_norm(x, weight, EPS)).numpy()
    ops.rms_norm_add(x, residual, weight, EPS)
    assert_bits_equal(residual.numpy(), expected)


def test_norm_row_does_not_depend_on_rows_or_threads():
    rng = np.random.default_rng(4)
    x, weight = normal(rng, 300, 577), tensor(normal(rng, 577))
    whole = ops.rms_norm(tensor(x), weight, EPS).numpy()
    ops.set_num_threads(3)
    assert_bits_equal(ops.rms_norm(tensor(x), weight, EPS).numpy(), whole)
    for row in (0, 7, 299):
        assert_bits_equal(ops.rms_norm(tensor(x[row : row + 1]), weight, EPS).numpy()[0], whole[row])


@pytest.mark.parametrize(("q_heads", "kv_heads", "dim"), [(1, 1, 8), (9, 3, 64), (4, 2, 80), (16, 8, 128)])
def test_qk_norm_agrees_with_its_twin(q_heads, kv_heads, dim):
    rng = np.random.default_rng(dim)
    qkv, q_weight, k_weight = normal(rng, 7, (q_heads + 2 * kv_heads) * dim), normal(rng, dim), normal(rng, dim)
    qkv_tensor = tensor(qkv)
    ops.qk_norm(qkv_tensor, tensor(q_weight), tensor(k_weight), q_heads, kv_heads, EPS)
    values = qkv[:, -kv_heads * dim :].copy()
    twins.qk_norm(qkv, q_weight, k_weight, q_heads, kv_heads, EPS)
    np.testing.assert_allclose(qkv_tensor.numpy(), qkv, rtol=2e-6, atol=1e-6)
    np.testing.assert_array_equal(qkv_tensor.numpy()[:, -kv_heads * dim :], values)


@pytest.mark.parametrize(("q_width", "kv_width"), [(8, 8), (577, 193), (1024, 1024)])
def test_projection_norm_agrees_with_its_twin_and_has_the_bits_of_rms_norm(q_width, kv_width):
    rng = np.random.default_rng(q_width)
    qkv, q_weight, k_weight = normal(rng, 7, q_width + 2 * kv_width), normal(rng, q_width), normal(rng, kv_width)
    qkv_tensor = tensor(qkv)
    ops.projection_norm(qkv_tensor, tensor(q_weight), tensor(k_weight), EPS)
    actual, (q, k, v) = qkv_tensor.numpy(), np.split(qkv, [q_width, q_width + kv_width], axis=1)
    parts = ops.rms_norm(tensor(q), tensor(q_weight), EPS), ops.rms_norm(tensor(k), tensor(k_weight), EPS)
    assert_bits_equal(actual, np.concatenate([*(part.numpy() for part in parts), v], axis=1))
    twins.projection_norm(qkv, q_weight, k_weight, EPS)
    np.testing.assert_allclose(actual, qkv, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("rows", "inner"), [(1, 1), (3, 17), (8, 1536), (70, 100)])
def test_swiglu_agrees_with_its_twin(rows, inner):
    gate_up = normal(np.random.default_rng(inner), rows, 2 * inner) * 10
    np.testing.assert_allclose(ops.swiglu(tensor(gate_up)).numpy(), twins.swiglu(gate_up), rtol=2e-6, atol=1e-30)


def test_swiglu_at_the_ends_of_the_range():
    gate = np.array([[0, -0.0, 200, -200, 1e30, -1e30, -89, 89, np.nan]], np.float32)
    actual = ops.swiglu(tensor(np.concatenate([gate, np.ones_like(gate)], axis=1))).numpy()
    np.testing.assert_allclose(actual[0, :-1], [0, 0, 200, 0, 1e30, 0, 0, 89], atol=1e-36)
    assert np.isnan(actual[0, -1])


# refusals


def test_in_place_ops_refuse_non_contiguous_tensors():
    wide = paddle.zeros([4, 32])
    view = wide[:, :16]
    assert not view.is_contiguous()
    with pytest.raises(ValueError, match="residual"):
        ops.add_rms_norm(paddle.zeros([4, 16]), view, paddle.ones([16]), EPS)
    with pytest.raises(ValueError, match="qkv"):
        ops.qk_norm(view, paddle.ones([4]), paddle.ones([4]), 2, 1, EPS)
    with pytest.raises(ValueError, match="residual"):
        ops.rms_norm_add(paddle.zeros([4, 16]), view, paddle.ones([16]), EPS)
    with pytest.raises(ValueError, match="qkv"):
        ops.projection_norm(view, paddle.ones([8]), paddle.ones([4]), EPS)


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("threads", lambda: ops.set_num_threads(0)),
        ("spin_microseconds", lambda: ops.set_num_threads(1, -1)),
        ("weight", lambda: ops.pack_weight(paddle.zeros([3]))),
        ("weight", lambda: ops.pack_weight(paddle.zeros([3, 4], dtype="float64"))),
        ("x", lambda: ops.linear(paddle.zeros([2, 5]), paddle.zeros([1, 4, 32]), 3)),
        ("packed", lambda: ops.linear(paddle.zeros([2, 4]), paddle.zeros([1, 4, 32]), 33)),
        ("out_features", lambda: ops.linear(paddle.zeros([2, 4]), paddle.zeros([1, 4, 32]), 0)),
        ("x", lambda: ops.linear(paddle.zeros([0, 4]), paddle.zeros([1, 4, 32]), 3)),
        ("bias", lambda: ops.linear(paddle.zeros([2, 4]), paddle.zeros([1, 4, 32]), 3, paddle.zeros([4]))),
        ("ids", lambda: ops.embedding(paddle.zeros([3, 4]), paddle.zeros([2], dtype="int32"), 3)),
        ("weight", lambda: ops.embedding(paddle.zeros([3, 4]), paddle.zeros([2], dtype="int64"), 4)),
        ("weight", lambda: ops.rms_norm(paddle.zeros([2, 4]), paddle.zeros([5]), EPS)),
        ("x", lambda: ops.rms_norm(paddle.zeros([4]), paddle.zeros([4]), EPS)),
        ("residual", lambda: ops.add_rms_norm(paddle.zeros([2, 4]), paddle.zeros([3, 4]), paddle.zeros([4]), EPS)),
        ("residual", lambda: ops.rms_norm_add(paddle.zeros([2, 4]), paddle.zeros([3, 4]), paddle.zeros([4]), EPS)),
        ("qkv", lambda: ops.projection_norm(paddle.zeros([2, 15]), paddle.zeros([8]), paddle.zeros([4]), EPS)),
        ("qkv", lambda: ops.qk_norm(paddle.zeros([2, 15]), paddle.zeros([4]), paddle.zeros([4]), 2, 1, EPS)),
        ("gate_up", lambda: ops.swiglu(paddle.zeros([2, 5]))),
        ("block_size", lambda: kv_cache_shape(4, 24, 1, 64)),
        ("head_dim", lambda: kv_cache_shape(4, 16, 1, 60)),
    ],
)  # fmt: skip
def test_bad_shapes_raise_with_the_name_of_the_argument(argument, call):
    with pytest.raises(REFUSED, match=argument):
        call()
