"""The CUDA kernel of decode attention, run thread by thread on the CPU, against its twin: how contexts are split and joined, what
is written where, and that the scratch which it asks for is what it uses. Blocks run in a random order."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from gpu_ops.twins import decode_ops as twins
from tests.gpu.parts.tensors import TOLERANCE, relative_error, round_to
from tests.gpu.test_attention import Case
from tests.gpu_ops import cuda_on_cpu


@pytest.fixture(scope="module")
def kernel(tmp_path_factory) -> ctypes.CDLL:
    return cuda_on_cpu.build(tmp_path_factory.mktemp("kernel"))


def to_bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values that ``dtype`` can hold, as the kernel reads them."""
    if dtype == "float16":
        return np.ascontiguousarray(values, np.float16).view(np.uint16)
    return (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def from_bits(bits: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def attend(kernel, case: Case, *, multiprocessors=3, cu_seqlens_q=None, longest=1, cos_sin=None, batch_invariant=False):
    """(output, k, v, floats of scratch); the output is NaN where nothing was written."""
    qkv, k, v = (to_bits(array, case.dtype) for array in (case.qkv, *case.cache))
    out = to_bits(np.full((len(qkv), case.q_heads * case.head_dim), np.nan, np.float32), case.dtype)
    sizes = [len(qkv), case.q_heads, case.kv_heads, case.head_dim, len(k), case.block_size, *case.block_tables.shape]
    arrays = {
        "sizes": np.array(sizes, np.int32), "positions": case.positions, "slots": case.slots, "tables": case.block_tables,
        "starts": cu_seqlens_q, "cos_sin": cos_sin,
    }  # fmt: skip
    at = {
        name: None if a is None else ctypes.c_void_p(np.ascontiguousarray(a).ctypes.data) for name, a in arrays.items()
    }
    memory = [ctypes.c_void_p(array.ctypes.data) for array in (qkv, k, v, out)]
    count = kernel.decode_attention(
        int(case.dtype == "bfloat16"), multiprocessors, int(np.random.default_rng().integers(2**31)), *memory[:3],
        at["cos_sin"], 0 if cos_sin is None else len(cos_sin), at["starts"], longest, int(batch_invariant),
        ctypes.c_float(case.head_dim**-0.5), memory[3], at["sizes"], at["positions"], at["slots"], at["tables"],
    )  # fmt: skip
    assert count > 0, "something was written beside the scratch"
    return from_bits(out, case.dtype), from_bits(k, case.dtype), from_bits(v, case.dtype), count


def padded(case: Case, slots: int) -> None:
    """Empty slots behind those of the case: a step seldom fills all."""
    missing = slots - len(case.block_tables)
    case.block_tables = np.pad(case.block_tables, ((0, missing), (0, 0)), constant_values=-1)
    case.cu_seqlens_q = np.pad(case.cu_seqlens_q, (0, missing), mode="edge")


LENGTHS = [[700], [1, 15, 16, 17, 64, 65, 257, 300, 700], [40, 130] * 4, [500] * 2]
SHAPES = [(16, 9, 3, 64), (64, 4, 2, 80), (16, 10, 2, 64), (32, 14, 2, 96), (64, 8, 2, 128), (16, 16, 1, 64)]


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("multiprocessors", "width"), [(3, None), (40, 64)])
def test_rows_that_are_alone_equal_the_twin(kernel, lengths, multiprocessors, width, batch_invariant):
    shape = SHAPES[np.random.default_rng().integers(len(SHAPES))]
    width = None if width is None else width * 64 // shape[0]
    case = Case.random([1] * len(lengths), lengths, *shape, "bfloat16", padding=3, width=width)
    for slot, length in enumerate(lengths):  # the kernel itself writes the newest position
        at = case.block_tables[slot, (length - 1) // shape[0]], slice(None), (length - 1) % shape[0]
        for part in case.cache:
            part[at] = np.nan
    angles = np.random.default_rng().uniform(-3, 3, size=(4096, shape[3] // 2))
    cos_sin = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    options = {"multiprocessors": multiprocessors, "cos_sin": cos_sin, "batch_invariant": batch_invariant}
    out, k, v, _ = attend(kernel, case, **options)
    expected_k, expected_v = case.cache[0].transpose(0, 1, 3, 2).copy(), case.cache[1].copy()
    where = (case.positions, case.slots, case.block_tables)
    heads = (case.q_heads, case.kv_heads)
    expected = twins.decode_attention(case.qkv, cos_sin, *where, expected_k, expected_v, *heads, case.head_dim**-0.5)
    assert relative_error(out, expected) < TOLERANCE["bfloat16"], shape
    assert not out[-3:].any()
    written = expected_k.transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(np.isnan(k), np.isnan(written))
    assert relative_error(np.nan_to_num(k), np.nan_to_num(written)) < TOLERANCE["bfloat16"]
    np.testing.assert_array_equal(v, expected_v)
    # The counters of arrived parts are zero again.
    np.testing.assert_array_equal(attend(kernel, case, **options)[0], out)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slots", [9, 40])
def test_single_rows_of_a_mixed_step_equal_the_twin(kernel, shape, slots):
    """Rows of prompts are another kernel's: this one leaves them alone, and takes scratch for slots, not for their rows."""
    rows, lengths = [0, 2, 1, 30, 0, 1, 1, 33, 0], [9, 2, 400, 30, 5, 300, 3, 290, 1]
    case = Case.random(rows, lengths, *shape, "float16", padding=2, width=2048 // shape[0])
    padded(case, slots)
    out, *_, count = attend(kernel, case, cu_seqlens_q=case.cu_seqlens_q, longest=33)
    single = np.repeat(np.array(rows) == 1, rows)
    assert relative_error(out[:-2][single], case.expected()[:-2][single]) < TOLERANCE["float16"]
    assert np.isnan(out[:-2][~single]).all()
    assert not out[-2:].any()
    step = 64 if case.head_dim > 80 else 128  # positions of a part at least
    assert count == slots * case.q_heads * (2048 // step) * (case.head_dim + 4)


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_invariant_rows_have_the_bits_of_rows_that_are_alone(kernel, shape):
    rows, lengths = [19, 1, 40, 0, 2], [19, 300, 170, 4, 131]
    case = Case.random(rows, lengths, *shape, "bfloat16", width=2048 // shape[0])
    alone, *_ = attend(kernel, case, batch_invariant=True)
    padded(case, 8)
    together, *_ = attend(kernel, case, cu_seqlens_q=case.cu_seqlens_q, longest=40, batch_invariant=True)
    np.testing.assert_array_equal(together, alone)
    assert relative_error(alone, case.expected()) < TOLERANCE["bfloat16"]


def test_a_row_that_belongs_to_nobody_is_zero_and_disturbs_none(kernel):
    case = Case.random([1] * 5, [200, 300, 64, 90, 700], 16, 9, 3, 64, "float16", padding=1)
    expected = case.expected()
    case.slots[1], case.positions[3] = 7, case.block_tables.shape[1] * 16
    out, *_ = attend(kernel, case)
    assert not out[[1, 3, 5]].any()
    assert relative_error(out[[0, 2, 4]], expected[[0, 2, 4]]) < TOLERANCE["float16"]


def test_values_survive_the_way_to_the_kernel_and_back():
    for dtype in TOLERANCE:
        values = round_to(np.random.default_rng().normal(size=(3, 5)), dtype)
        np.testing.assert_array_equal(from_bits(to_bits(values, dtype), dtype), values)
