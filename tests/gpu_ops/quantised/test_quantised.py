"""Ops on quantised weights have the bits of their NumPy twins with every instruction set that the processor has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpu_ops import forward
from gpu_ops.quantised.ops import INSTRUCTION_SETS, quantised_embedding, quantised_linear
from gpu_ops.quantised.packing import pack_rows, packed_bytes
from gpu_ops.quantised.stored_rows import BLOCK_TYPES, StoredRows
from gpu_ops.twins import quantised as twins
from tests.gpu_ops.quantised.random_rows import random_rows, width_of

KINDS = sorted(BLOCK_TYPES)
FLAGS = {"avx512": " avx512_vnni ", "avx2": " avx2 ", "portable": ""}
HERE = [name for name in INSTRUCTION_SETS if FLAGS[name] in Path("/proc/cpuinfo").read_text().replace("\n", " ")]
# Two depth blocks, the second shorter.
DEEP = 1792


def assert_bits(actual: paddle.Tensor, expected: np.ndarray) -> None:
    same = actual.numpy().view(np.int32) == expected.view(np.int32)
    same |= np.isnan(actual.numpy()) & np.isnan(expected)
    assert same.all(), f"{np.count_nonzero(~same)} of {same.size} values differ"


def linear_everywhere(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """What all instruction sets give, and the twin."""
    expected = twins.quantised_linear(x, weight, bias)
    for name in HERE:
        given_bias = None if bias is None else paddle.to_tensor(bias)
        assert_bits(quantised_linear(paddle.to_tensor(x), paddle.to_tensor(weight), given_bias, name), expected)
    return expected


@settings(deadline=None, max_examples=50)
@given(
    parts=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 70)), min_size=1, max_size=3),
    blocks=st.integers(1, 5),
    rows=st.integers(1, 20),
    has_bias=st.booleans(),
    factor=st.sampled_from([1.0, 0.22]),
    seed=st.integers(0, 999),
)
@example([("Q4_1", 40), ("Q8_0", 33)], DEEP // 32, 9, True, 1.0, 0)
@example([("Q4_0", 161)], DEEP // 32, 75, False, 1.0, 0)
@example([("Q4_K", 70), ("Q6_K", 33)], DEEP // 256, 9, True, 1.0, 0)
@example([("F16", 70), ("IQ4_NL", 33), ("BF16", 5)], 20, 9, True, 0.22, 0)
def test_linear_has_the_bits_of_its_twin_and_the_value_of_the_product(parts, blocks, rows, has_bias, factor, seed):
    random = np.random.default_rng(seed)
    width = width_of([kind for kind, _ in parts], blocks)
    matrices = [random_rows(random, kind, count, width, factor) for kind, count in parts]
    weight = pack_rows(matrices)
    assert weight.nbytes == packed_bytes(parts, width)
    table = np.concatenate([matrix.expanded() for matrix in matrices])
    x = random.standard_normal((rows, width), np.float32)
    bias = random.standard_normal(len(table), np.float32) if has_bias else None
    y = linear_everywhere(x, weight, bias)
    exact = x.astype(np.float64) @ table.T + (0 if bias is None else bias)
    # Half a step of the rounded inputs, for each of them.
    steps = np.abs(x).reshape(rows, -1, 32).max(axis=-1).repeat(32, axis=-1) / 127
    assert (np.abs(y - exact) <= 0.51 * steps @ np.abs(table).T + 1e-4 * (1 + np.abs(exact))).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quant", [0x00, 0x7F, 0x80, 0xFF, None])
def test_the_largest_products_do_not_saturate(kind: str, quant: int | None):
    random = np.random.default_rng(0)
    width = width_of([kind], 2)
    weight = pack_rows([random_rows(random, kind, 64, width, quant=quant)])
    signs = np.where(np.arange(width) % 2 == 0, 1, -1)
    x = np.stack([np.ones(width), -np.ones(width), signs, -signs]).astype(np.float32)
    linear_everywhere(x, weight)


def test_a_row_depends_on_nothing_but_itself():
    random = np.random.default_rng(0)
    weight = pack_rows([random_rows(random, "Q4_1", 300, DEEP), random_rows(random, "Q8_0", 70, DEEP)])
    x = random.standard_normal((70, DEEP), np.float32)
    packed, threads = paddle.to_tensor(weight), forward.get_num_threads()
    try:
        for name in HERE:
            results = []
            for count in (1, 2):
                forward.set_num_threads(count)
                results.append(quantised_linear(paddle.to_tensor(x), packed, None, name).numpy())
            alone = [
                quantised_linear(paddle.to_tensor(x[i : i + 1]), packed, None, name).numpy()[0] for i in (0, 5, 69)
            ]
            assert (results[0] == results[1]).all() and (results[0][[0, 5, 69]] == alone).all()
    finally:
        forward.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
@pytest.mark.parametrize("factor", [1.0, 0.22])
def test_numbers_of_16_bits_give_the_bits_of_float32(kind: str, factor: float):
    random = np.random.default_rng(0)
    matrix = random_rows(random, kind, 70, DEEP, factor)
    matrix.blocks[:, ::97] = 0x81  # numbers near zero: in F16 subnormal
    matrix.blocks[:, 1::97] = 0
    bias = paddle.to_tensor(random.standard_normal(70, np.float32))
    dense, packed = forward.pack_weight(paddle.to_tensor(matrix.expanded())), paddle.to_tensor(pack_rows([matrix]))
    for rows in (1, 2, 9, 33):
        x = paddle.to_tensor(random.standard_normal((rows, DEEP), np.float32))
        expected = forward.linear(x, dense, 70, bias).numpy()
        for name in HERE:
            assert_bits(quantised_linear(x, packed, bias, name), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_at_the_ends_of_their_range(kind: str):
    random = np.random.default_rng(0)
    width = width_of([kind], 3)
    weight = pack_rows([random_rows(random, kind, 40, width)])
    x = random.standard_normal((8, width), np.float32)
    x[0] = 0
    x[1, :32] *= np.float32(1e-38)
    x[2, 32:] *= np.float32(2.0**-101)
    x[3] = np.float32(1e35)
    x[4, 7], x[5, 40], x[6, 95] = np.nan, np.inf, -np.inf
    y = linear_everywhere(x, weight)
    assert (y[0] == 0).all() and np.isfinite(y[[0, 1, 2, 7]]).all()
    # Of inputs that are not rounded infinities stay what they are.
    assert np.isnan(y[4:5] if BLOCK_TYPES[kind].is_dense else y[4:7]).all() and not np.isfinite(y[4:7]).any()


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_embedding_is_the_stored_table(factor: float):
    random = np.random.default_rng(0)
    counts = zip(KINDS, (33, 5, 65, 1, 32, 40, 20, 37, 31, 64, 2), strict=True)
    matrices = [random_rows(random, kind, count, 512, factor) for kind, count in counts]
    for some in (matrices[:6], matrices[6:]):  # a weight has up to six parts
        check_embedding(some)


def check_embedding(matrices: list[StoredRows]) -> None:
    weight, count = pack_rows(matrices), sum(map(len, matrices))
    ids = np.array([*range(count), -1, count, 2**40])
    rows = quantised_embedding(paddle.to_tensor(weight), paddle.to_tensor(ids))
    assert_bits(rows, twins.quantised_embedding(weight, ids))
    assert_bits(rows[:count], np.concatenate([matrix.expanded() for matrix in matrices]))
    assert (rows[count:].numpy() == 0).all()


def test_what_is_no_quantised_weight_is_refused():
    sound = pack_rows([random_rows(np.random.default_rng(0), "Q4_1", 40, 64)])

    def with_word(index: int, value: int) -> np.ndarray:
        changed = sound.copy()
        changed.view(np.int64)[index] = value
        return changed

    damaged = {
        "header": sound[:100],
        "no header": with_word(0, 1),
        "multiple of 32": with_word(1, 65),
        "multiple of 256": with_word(4, 12),
        "1 to 6 parts": with_word(2, 7),
        "unknown type": with_word(4, 99),
        "without rows": with_word(5, 0),
        "shorter than its parts": sound[:-1],
        "longer than its parts": np.concatenate([sound, sound[:1]]),
    }
    x = paddle.ones([1, 64])
    for said, weight in damaged.items():
        with pytest.raises((RuntimeError, ValueError, OSError), match=said):
            quantised_linear(x, paddle.to_tensor(weight))
    with pytest.raises((RuntimeError, ValueError, OSError), match="x: has shape"):
        quantised_linear(paddle.ones([1, 32]), paddle.to_tensor(sound))
    with pytest.raises((RuntimeError, ValueError, OSError), match="instruction_set"):
        quantised_linear(x, paddle.to_tensor(sound), instruction_set="mmx")


def test_matrices_that_cannot_be_one_weight_are_refused():
    random = np.random.default_rng(0)
    for others in ({"in_features": 64}, {"factor": 2.0}):
        wanted = {"in_features": 32, **others}
        with pytest.raises(ValueError, match="same inputs and factor"):
            pack_rows([random_rows(random, "Q4_0", 8, 32), random_rows(random, "Q4_0", 8, **wanted)])


def test_stored_rows_say_their_shape():
    matrix: StoredRows = random_rows(np.random.default_rng(0), "Q8_0", 5, 96)
    assert (matrix.shape, len(matrix), matrix.ndim, matrix.nbytes) == ((5, 96), 5, 2, 5 * 3 * 34)
