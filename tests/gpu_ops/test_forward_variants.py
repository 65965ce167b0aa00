"""The forward kernels give the same bits with AVX-512, AVX2 and plain C++, built here for each."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import numpy as np
import pytest

from gpu_ops.build import KERNEL_FLAGS
from gpu_ops.kv_cache import CPU_TYPES, kv_cache_shape
from gpu_ops.sources import CSRC, write_generated_headers
from tests.gpu_ops.compiled import shared_libraries
from tests.gpu_ops.test_attention import EMPTY

NAMES = ("linear/linear", "layers/norm", "attention/paged_attention", "attention/rotary", "device/thread_pool")
SOURCES = [*(CSRC / "kernels" / f"{name}.cc" for name in NAMES), Path(__file__).parent / "kernel_variants.cc"]
LEVELS = {"x86-64": "baseline", "x86-64-v3": "avx2", "x86-64-v4": "avx512f"}


def _runs_here(level: str) -> bool:
    return LEVELS[level] == "baseline" or f" {LEVELS[level]} " in Path("/proc/cpuinfo").read_text().replace("\n", " ")


@pytest.fixture(scope="module")
def variants(tmp_path_factory) -> dict[str, ctypes.CDLL]:
    """One library per instruction set that this processor has."""
    if platform.machine() != "x86_64":
        pytest.skip("the variants are x86-64 instruction sets")
    folder = tmp_path_factory.mktemp("variants")
    includes = write_generated_headers(folder)

    builds = {
        folder / f"{level}.so": [f"-march={level}" if flag == "-march=native" else flag for flag in KERNEL_FLAGS]
        + includes
        for level in LEVELS
        if _runs_here(level)
    }
    shared_libraries(builds, SOURCES)
    return {library.stem: ctypes.CDLL(str(library)) for library in builds}


def _call(function, *arguments):
    def c_value(argument):
        if argument is None:
            return None
        if isinstance(argument, np.ndarray):
            assert argument.flags.c_contiguous
            return argument.ctypes.data_as(ctypes.c_void_p)
        return ctypes.c_int64(argument)

    function.restype = ctypes.c_int64
    return function(*map(c_value, arguments))


def assert_same_bits(results: dict[str, np.ndarray]) -> None:
    (first, expected), *others = results.items()
    for level, actual in others:
        same = actual.view(np.uint32) == expected.view(np.uint32)
        assert same.all(), f"{level} and {first} differ in {np.count_nonzero(~same)} of {same.size} values"


def test_the_variants_differ_in_their_tiles(variants):
    assert len({library.tile_rows() for library in variants.values()}) == len(variants)


def test_exponential_is_the_same_and_within_two_ulp(variants):
    rng = np.random.default_rng(0)
    ends = np.array(
        [0, -0.0, -87.4, -100, -103.9, 88.7, 89, 1e30, -1e30, np.inf, -np.inf, 1e-30, 0.34657, -0.34658, 1, -1]
    )
    x = np.concatenate([ends, rng.uniform(-104, 89, 2**18), rng.uniform(-1, 1, 2**18)]).astype(np.float32)
    results = {}
    for level, library in variants.items():
        results[level] = np.empty_like(x)
        _call(library.exponential, x, x.size, results[level])
    assert_same_bits(results)
    actual = next(iter(results.values())).astype(np.float64)
    with np.errstate(over="ignore"):
        exact = np.exp(x.astype(np.float64))
        rounded = exact.astype(np.float32)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(np.isfinite(actual), finite)
    ulp = np.spacing(np.maximum(rounded[finite], np.float32(1e-45)).astype(np.float32)).astype(np.float64)
    assert (np.abs(actual[finite] - exact[finite]) / ulp).max() < 2
    nan = np.full(16, np.nan, np.float32)
    for library in variants.values():
        out = np.zeros(16, np.float32)
        _call(library.exponential, nan, 16, out)
        assert np.isnan(out).all()


def test_rounding_of_blocks_is_the_same_and_to_the_nearest(variants):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4096, 32), dtype=np.float32) * np.exp2(rng.integers(-90, 90, (4096, 1))).astype(np.float32)
    x[:1024] = rng.integers(-254, 254, (1024, 32)) / 2  # whole numbers and ties between them
    x[:1024, 0] = 127
    results = {level: np.empty((len(x), 11), np.int32) for level in variants}
    for level, library in variants.items():
        _call(library.round_blocks, x, len(x), results[level])
    assert_same_bits(results)
    found = next(iter(results.values()))
    quants, most = found[:, :8].copy().view(np.int8), np.abs(x).max(axis=1)
    np.testing.assert_array_equal(quants, np.rint(x * (np.float32(127) / most)[:, None]))
    np.testing.assert_array_equal(found[:, 8], quants.sum(axis=1, dtype=np.int32))
    np.testing.assert_array_equal(found[:, 9], quants[:, :16].sum(axis=1, dtype=np.int32))
    np.testing.assert_array_equal(found[:, 10].copy().view(np.float32), most)


@pytest.mark.parametrize(
    ("rows", "out_features", "in_features"), [(1, 70, 100), (8, 33, 500), (29, 96, 390), (100, 70, 64)]
)
def test_linear_is_the_same(variants, rows, out_features, in_features):
    rng = np.random.default_rng(rows)
    x, weight = (rng.standard_normal(s, dtype=np.float32) for s in ((rows, in_features), (out_features, in_features)))
    bias = rng.standard_normal(out_features, dtype=np.float32)
    results = {}
    for level, library in variants.items():
        packed = np.empty((-(-out_features // 32), in_features, 32), np.float32)
        results[level] = np.empty((rows, out_features), np.float32)
        _call(library.linear, x, rows, in_features, weight, out_features, bias, packed, results[level])
    assert_same_bits(results)
    np.testing.assert_allclose(next(iter(results.values())), x @ weight.T + bias, atol=1e-3)


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (5, 577), (3, 9)])
def test_norm_and_swiglu_are_the_same(variants, rows, width):
    rng = np.random.default_rng(width)
    x, residual, gate_up = (rng.standard_normal((rows, n), dtype=np.float32) * 5 for n in (width, width, 2 * width))
    weight = rng.standard_normal(width, dtype=np.float32)
    norms, activations = {}, {}
    for level, library in variants.items():
        norms[level], activations[level] = np.empty_like(x), np.empty_like(x)
        _call(library.add_rms_norm, x, residual.copy(), weight, rows, width, norms[level])
        _call(library.swiglu, gate_up, rows, width, activations[level])
    assert_same_bits(norms)
    assert_same_bits(activations)


@pytest.mark.parametrize("dtype", CPU_TYPES)
@pytest.mark.parametrize(("q_heads", "kv_heads", "dim", "block_size"), [(9, 3, 64, 16), (2, 2, 24, 32), (7, 1, 80, 64)])
def test_rotary_and_attention_are_the_same(variants, q_heads, kv_heads, dim, block_size, dtype):
    rng = np.random.default_rng(dim)
    rows = 300
    blocks = -(-rows // block_size)
    qkv = rng.standard_normal((rows, (q_heads + 2 * kv_heads) * dim), dtype=np.float32)
    cos_sin = rng.standard_normal((blocks * block_size, dim), dtype=np.float32)
    positions, slots = np.arange(rows, dtype=np.int32), np.zeros(rows, np.int32)
    results, stored = {}, {}
    for level, library in variants.items():
        k_cache, v_cache = map(EMPTY[dtype], kv_cache_shape(blocks, block_size, kv_heads, dim, dtype))
        results[level] = np.empty((rows, q_heads * dim), np.float32)
        fault = _call(library.attend, qkv.copy(), cos_sin, positions, slots, np.arange(blocks, dtype=np.int32),
                      CPU_TYPES.index(dtype), k_cache, v_cache, rows, q_heads, kv_heads, dim, blocks, block_size,
                      results[level])  # fmt: skip
        assert fault == -1
        assert np.isfinite(results[level]).all()
        stored[level] = np.concatenate([cache.reshape(-1).view(np.uint8) for cache in (k_cache, v_cache)])
    assert_same_bits(results)
    assert_same_bits(stored)
