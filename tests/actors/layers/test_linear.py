"""A layer over the arrays that it was kept in computes the same bits, whatever kind its weight is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.device.cpu import CpuDevice
from actors.device.host_tensor import host_view
from actors.layers.linear import Linear
from actors.layers.weights.dense import DenseWeight
from actors.layers.weights.weight import Weight
from tests.actors.layers.transposed_weight import TransposedWeight

KINDS = [DenseWeight, TransposedWeight]


@pytest.mark.parametrize("kind", KINDS)
@given(
    out_features=st.integers(1, 70),
    in_features=st.integers(2, 50),
    num_rows=st.integers(1, 5),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_is_kept_of_a_layer_makes_the_same_layer(
    kind: type[Weight], out_features: int, in_features: int, num_rows: int, has_bias: bool, seed: int
):
    random, device = np.random.default_rng(seed), CpuDevice()
    array = random.normal(size=(out_features, in_features)).astype(np.float32)
    bias = random.normal(size=out_features).astype(np.float32)
    layer = Linear(kind.store(device, [array[:3], array[3:]], device.joined), device.tensor(bias) if has_bias else None)
    kept = {ending: host_view(part).copy() for ending, part in layer.ready_tensors().items()}
    shapes = Linear.ready_shapes(device, kind, out_features, in_features, out_features if has_bias else 0)
    assert {ending: part.shape for ending, part in kept.items()} == shapes
    tensors = {ending: device.mapped_tensor(part) for ending, part in kept.items()}
    again = Linear.from_ready(device, kind, tensors, out_features)
    x = device.tensor(random.normal(size=(num_rows, in_features)).astype(np.float32))
    result = layer(x).numpy()
    assert (again(x).numpy() == result).all()
    assert (again.weight.out_features, again.weight.in_features) == (out_features, in_features)
    assert again.weight.num_bytes == layer.weight.num_bytes == array.nbytes
    expected = x.numpy().astype(np.float64) @ array.T + (bias if has_bias else 0)
    assert np.abs(result - expected).max() < 1e-3
