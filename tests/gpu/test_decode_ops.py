"""Matmuls of few rows and attention with rotary embedding and cache write folded in, on the GPU against their twins."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.device.cuda.graphs import CUDAGraph

from gpu_ops import decode_ops, forward
from gpu_ops.kernel_limits import MAX_SMALL_BATCH_ROWS
from gpu_ops.twins import decode_ops as twins
from tests.gpu.parts.tensors import HALVES, TOLERANCE, gpu, host, poison, relative_error, round_to
from tests.gpu.test_attention import SHAPES, Case
from tests.gpu.test_layers import normal

SIZES = [
    *((1, 576, 960), (3, 200, 72), (8, 14336, 64), (11, 4096, 512), (17, 576, 3072), (32, 1536, 576), (64, 576, 200)),
    # Fewer outputs than a block has, and odd ones.
    *((5, 576, 2), (9, 64, 12), (1, 64, 1), (3, 200, 7), (12, 1536, 77), (40, 576, 1001)),
    # Of small layers: every tile, with rows beyond the last.
    *((8, 576, 576), (20, 576, 960), (31, 1536, 576), (33, 576, 3072), (48, 1536, 576), (50, 960, 320), (63, 576, 960)),
    *((64, 576, 3072), (64, 1536, 576), (90, 64, 12), (101, 576, 576), (128, 576, 3072), (128, 1536, 576)),
]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_norm", [False, True])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_small_batch_linear_equals_twin(rows, inputs, outputs, swiglu, has_norm, has_bias, dtype):
    rng = np.random.default_rng()
    outputs += outputs % 2 if swiglu else 0  # a gate and an up for each result
    x, weight = normal(rng, rows, inputs, dtype=dtype), normal(rng, outputs, inputs, dtype=dtype) / 16
    weight = round_to(weight, dtype)
    bias = normal(rng, outputs, dtype=dtype) if has_bias else None
    gain = normal(rng, inputs, dtype=dtype) if has_norm else None
    arguments = [
        gpu(x, dtype),
        gpu(weight, dtype),
        *(part if part is None else gpu(part, dtype) for part in (bias, gain)),
    ]
    poison()
    result = host(decode_ops.small_batch_linear(*arguments, eps=1e-5, swiglu=swiglu))
    assert result.shape == (rows, outputs // 2 if swiglu else outputs)
    # The gain is applied before rounding to the type, the norm's factor after the sum.
    expected = twins.small_batch_linear(x, weight, bias, gain, 1e-5, swiglu)
    usual_size = 0.1 if swiglu else inputs**0.5 / 16
    assert relative_error(result, expected, usual_size) < 2 * TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_add_small_batch_linear_equals_twin(rows, inputs, outputs, dtype):
    rng = np.random.default_rng()
    x, residual = normal(rng, rows, inputs, dtype=dtype), normal(rng, rows, outputs, dtype=dtype)
    weight, bias = round_to(normal(rng, outputs, inputs, dtype=dtype) / 16, dtype), normal(rng, outputs, dtype=dtype)
    residual_gpu = gpu(residual, dtype)
    decode_ops.add_small_batch_linear(gpu(x, dtype), gpu(weight, dtype), residual_gpu, gpu(bias, dtype))
    twins.add_small_batch_linear(x, weight, residual, bias)
    assert relative_error(host(residual_gpu), residual) < TOLERANCE[dtype]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SIZES)
def test_small_batch_linear_rows_do_not_depend_on_each_other(rows, inputs, outputs):
    rng = np.random.default_rng()
    weight, gain = gpu(rng.normal(size=(outputs, inputs)), "bfloat16"), gpu(rng.normal(size=inputs), "bfloat16")
    x = round_to(rng.normal(size=(rows, inputs)), "bfloat16")
    together = host(decode_ops.small_batch_linear(gpu(x, "bfloat16"), weight, None, gain, 1e-5))
    for row in range(rows):
        alone = host(decode_ops.small_batch_linear(gpu(x[row : row + 1], "bfloat16"), weight, None, gain, 1e-5))
        np.testing.assert_array_equal(alone[0], together[row])


@pytest.mark.parametrize("rows", [1, 20, 40, 64, 128])
def test_matmuls_that_overlap_have_the_bits_of_matmuls_one_by_one(rows):
    rng = np.random.default_rng()
    hidden, inner, layers = 576, 1536, 8
    gate_up = [gpu(rng.normal(size=(2 * inner, hidden)) / 24, "bfloat16") for _ in range(layers)]
    down = [gpu(rng.normal(size=(hidden, inner)) / 40, "bfloat16") for _ in range(layers)]
    gain, start = gpu(np.ones(hidden), "bfloat16"), gpu(rng.normal(size=(rows, hidden)), "bfloat16")
    every_row = gpu(np.arange(rows, dtype=np.int64))

    def run(wait):
        residual = forward.embedding(start, every_row, rows)
        for weights in zip(gate_up, down, strict=True):
            gated = decode_ops.small_batch_linear(residual, weights[0], None, gain, 1e-5, swiglu=True)
            wait()
            decode_ops.add_small_batch_linear(gated, weights[1], residual)
            wait()
        return residual

    one_by_one = host(run(paddle.device.cuda.synchronize))
    assert np.isfinite(one_by_one).all()
    graph = CUDAGraph()
    graph.capture_begin()
    together = run(lambda: None)
    graph.capture_end()
    for _ in range(3):
        graph.replay()
        np.testing.assert_array_equal(host(together), one_by_one)


def test_small_batch_linear_gives_float32_logits():
    rng = np.random.default_rng()
    x, weight = normal(rng, 5, 576, dtype="bfloat16"), normal(rng, 1000, 576, dtype="bfloat16")
    result = decode_ops.small_batch_linear(gpu(x, "bfloat16"), gpu(weight, "bfloat16"), float32_output=True)
    assert "float32" in str(result.dtype)
    assert relative_error(host(result), twins.small_batch_linear(x, weight)) < 1e-5


@pytest.mark.parametrize(
    ("inputs", "outputs", "swiglu", "message"), [(60, 16, False, "multiple of 8"), (64, 15, True, "even out_features")]
)
def test_sizes_that_the_kernel_does_not_take_are_refused(inputs, outputs, swiglu, message):
    x, weight = (gpu(np.zeros((rows, inputs), np.float32), "bfloat16") for rows in (3, outputs))
    with pytest.raises((RuntimeError, ValueError, OSError), match=message):
        decode_ops.small_batch_linear(x, weight, swiglu=swiglu)


def test_too_many_rows_are_refused():
    x = gpu(np.zeros((MAX_SMALL_BATCH_ROWS + 1, 64), np.float32), "bfloat16")
    with pytest.raises((RuntimeError, ValueError, OSError), match="needs at most 128"):
        decode_ops.small_batch_linear(x, gpu(np.zeros((16, 64), np.float32), "bfloat16"))


def compute(case, cos_sin, dtype, **options):
    """Output and caches of ``decode_attention``; the newest position of each slot is not in the cache before."""
    k, v = (gpu(part, dtype) for part in case.cache)
    tensors = [gpu(cos_sin), *(gpu(part) for part in (case.positions, case.slots, case.block_tables)), k, v]
    qkv = gpu(case.qkv, dtype)
    poison()
    heads = (case.q_heads, case.kv_heads)
    out = decode_ops.decode_attention(qkv, *tensors, *heads, case.head_dim**-0.5, **options)
    np.testing.assert_array_equal(host(qkv), case.qkv)
    return host(out), host(k), host(v)


def single_rows(shape, dtype, lengths, width=None):
    """Rows that are alone in their slot, and a table of angles."""
    case = Case.random([1] * len(lengths), lengths, *shape, dtype, padding=3, width=width)
    for slot, length in enumerate(lengths):
        at = case.block_tables[slot, (length - 1) // shape[0]], slice(None), (length - 1) % shape[0]
        for part in case.cache:
            part[at] = np.nan
    angles = np.random.default_rng().uniform(-3, 3, size=(4096, shape[3] // 2))
    return case, np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("lengths", [[700], [1, 15, 16, 17, 64, 65, 255, 256, 257, 300, 700], [40, 130] * 20])
@pytest.mark.parametrize("shape", SHAPES)
def test_decode_attention_equals_twin(shape, lengths, batch_invariant, dtype):
    case, cos_sin = single_rows(shape, dtype, lengths)
    out, k, v = compute(case, cos_sin, dtype, batch_invariant=batch_invariant)
    # As on the CPU, keys position-fastest.
    expected_k, expected_v = case.cache[0].transpose(0, 1, 3, 2).copy(), case.cache[1].copy()
    where = (case.positions, case.slots, case.block_tables)
    expected = twins.decode_attention(
        case.qkv, cos_sin, *where, expected_k, expected_v, case.q_heads, case.kv_heads, case.head_dim**-0.5
    )
    assert relative_error(out, expected) < TOLERANCE[dtype]
    assert not out[-3:].any()
    written = expected_k.transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(np.isnan(k), np.isnan(written))
    assert relative_error(np.nan_to_num(k), np.nan_to_num(written)) < TOLERANCE[dtype]
    np.testing.assert_array_equal(v, expected_v)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_invariant_decode_attention_has_the_bits_of_its_two_ops(shape):
    case, cos_sin = single_rows(shape, "bfloat16", [1, 64, 257, 700], width=64)
    out, k, v = compute(case, cos_sin, "bfloat16", batch_invariant=True)
    caches = [gpu(part, "bfloat16") for part in case.cache]
    qkv, heads = gpu(case.qkv, "bfloat16"), (case.q_heads, case.kv_heads)
    where = [gpu(part) for part in (case.positions, case.slots)]
    tables = gpu(case.block_tables)
    forward.rotary_kv_write(qkv, gpu(cos_sin), *where, tables, *caches, *heads)
    attended = forward.paged_attention(
        qkv, *caches, tables, *where, *heads, case.head_dim**-0.5, batch_invariant=True
    )  # fmt: skip
    for ours, theirs in zip((out, k, v), (attended, *caches), strict=True):
        np.testing.assert_array_equal(ours, host(theirs))
