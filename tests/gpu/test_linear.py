"""linear on the GPU against its twin, and the bits that batch_invariant promises."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_ops import forward as ops
from tests.gpu.parts.tensors import HALVES, TOLERANCE, gpu, host, poison, relative_error, round_to


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("has_bias", "float32_output"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize(
    ("rows", "in_features", "out_features"),
    [(1, 8, 8), (1, 576, 960), (3, 1536, 576), (65, 200, 1000), (130, 4096, 512)],
)
def test_linear_equals_twin(rows, in_features, out_features, has_bias, float32_output, dtype):
    rng = np.random.default_rng()
    x, weight = (round_to(rng.normal(size=(n, in_features)), dtype) for n in (rows, out_features))
    bias = round_to(rng.normal(size=out_features), dtype)
    x_gpu, packed = gpu(x, dtype), ops.pack_weight(gpu(weight, dtype))
    bias_gpu = gpu(bias, dtype) if has_bias else None
    poison()
    y = ops.linear(x_gpu, packed, out_features, bias_gpu, float32_output)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64) + (bias if has_bias else 0)
    assert y.shape == [rows, out_features]
    assert relative_error(host(y), expected) < (1e-5 if float32_output else TOLERANCE[dtype])


@pytest.mark.parametrize(("in_features", "out_features"), [(576, 960), (4096, 6144), (1536, 576)])
def test_batch_invariant_rows_do_not_see_their_neighbours(in_features, out_features):
    rng = np.random.default_rng()
    x = round_to(rng.normal(size=(300, in_features)), "bfloat16")
    weight = gpu(rng.normal(size=(out_features, in_features)), "bfloat16")
    whole = host(ops.linear(gpu(x, "bfloat16"), weight, out_features, batch_invariant=True))
    for start, end in ((0, 1), (7, 8), (3, 20), (100, 164), (20, 150), (299, 300)):
        part = host(ops.linear(gpu(x[start:end], "bfloat16"), weight, out_features, batch_invariant=True))
        np.testing.assert_array_equal(part, whole[start:end])
