"""A layer over the arrays that it was kept in computes the same bits, whatever kind its weight is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.device.cpu import CpuDevice
from actors.device.host_tensor import host_view
from actors.layers.linear import Linear
from actors.layers.weights.dense import DenseWeight
from actors.layers.weights.quantised import QuantisedWeight
from actors.layers.weights.weight import MatrixPart, Weight
from gpu_ops.quantised.stored_rows import BLOCK_TYPES
from tests.actors.layers.transposed_weight import TransposedWeight
from tests.gpu_ops.quantised.random_rows import random_rows, width_of

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
    parts = [MatrixPart(min(3, out_features)), MatrixPart(max(0, out_features - 3))]
    shapes = Linear.ready_shapes(device, kind, parts, in_features, out_features if has_bias else 0)
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


@settings(deadline=None)
@given(
    formats=st.lists(st.tuples(st.sampled_from(sorted(BLOCK_TYPES)), st.integers(1, 40)), min_size=1, max_size=3),
    blocks=st.integers(1, 4),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_is_kept_of_a_quantised_layer_makes_the_same_layer(formats, blocks: int, has_bias: bool, seed: int):
    random, device = np.random.default_rng(seed), CpuDevice()
    width = width_of([kind for kind, _ in formats], blocks)
    matrices = [random_rows(random, kind, rows, width) for kind, rows in formats]
    table = np.concatenate([matrix.expanded() for matrix in matrices])
    bias = random.normal(size=len(table)).astype(np.float32)
    weight = QuantisedWeight.store(device, matrices, device.joined)
    layer = Linear(weight, device.tensor(bias) if has_bias else None)
    kept = {ending: host_view(part).copy() for ending, part in layer.ready_tensors().items()}
    parts = [MatrixPart(rows, kind) for kind, rows in formats]
    shapes = Linear.ready_shapes(device, QuantisedWeight, parts, width, len(table) if has_bias else 0)
    assert {ending: part.shape for ending, part in kept.items()} == shapes
    tensors = {ending: device.mapped_tensor(part) for ending, part in kept.items()}
    again = Linear.from_ready(device, QuantisedWeight, tensors, len(table))
    x = device.tensor(random.normal(size=(3, width)).astype(np.float32))
    assert (again(x).numpy() == layer(x).numpy()).all()
    assert (
        (again.weight.out_features, again.weight.in_features)
        == table.shape
        == (weight.out_features, weight.in_features)
    )
    assert again.weight.num_bytes == weight.num_bytes
    ids = device.tensor(np.arange(len(table)))
    assert (again.weight.embedding(ids).numpy() == table).all()
    exact = x.numpy().astype(np.float64) @ table.T + (bias if has_bias else 0)
    assert np.abs(layer(x).numpy() - exact).max() < 0.02 * np.abs(x.numpy()).max() * np.abs(table).sum(axis=1).max()
