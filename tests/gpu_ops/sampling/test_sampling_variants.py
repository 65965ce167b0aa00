"""The sampling kernels give the same bits with AVX-512, AVX2 and plain C++, built here for each."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import numpy as np
import pytest

from gpu_ops.build import KERNEL_FLAGS
from gpu_ops.sources import CSRC, write_generated_headers
from gpu_ops.twins import sampling as twins
from tests.gpu_ops.compiled import shared_libraries

NAMES = ("sampling/sample", "sampling/token_logprobs", "sampling/token_masks", "device/thread_pool")
SOURCES = [*(CSRC / "kernels" / f"{name}.cc" for name in NAMES), Path(__file__).parent / "sampling_variants.cc"]
FLAG_OF_LEVEL = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512f"}


@pytest.fixture(scope="module")
def variants(tmp_path_factory) -> dict[str, ctypes.CDLL]:
    """One library per instruction set that this processor has."""
    if platform.machine() != "x86_64":
        pytest.skip("the variants are x86-64 instruction sets")
    folder = tmp_path_factory.mktemp("variants")
    includes = write_generated_headers(folder)
    flags_here = Path("/proc/cpuinfo").read_text().split()
    builds = {
        folder / f"{level}.so": [f"-march={level}" if flag == "-march=native" else flag for flag in KERNEL_FLAGS]
        + includes
        for level, flag_here in FLAG_OF_LEVEL.items()
        if flag_here in flags_here
    }
    shared_libraries(builds, SOURCES)
    return {library.stem: ctypes.CDLL(str(library)) for library in builds}


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """The address of a contiguous array."""
    assert array.flags.c_contiguous
    return array.ctypes.data_as(ctypes.c_void_p)


@pytest.mark.parametrize("vocab", [7, 333, 50_001])
def test_sampled_tokens_and_logprobs_are_the_same(variants, vocab):
    rng = np.random.default_rng(vocab)
    rows = 24
    logits = (rng.normal(size=(rows, vocab)) * 3).astype(np.float32)
    temperature = rng.choice([0.0, 0.5, 1.3], rows).astype(np.float32)
    top_p = rng.choice([0.3, 0.9, 1.0], rows).astype(np.float32)
    min_p = rng.choice([0.0, 0.05], rows).astype(np.float32)
    top_k = rng.choice([0, 5, 200], rows).astype(np.int32)
    seeds, zeros, slots = rng.integers(0, 2**60, rows), np.zeros(rows, np.int64), np.arange(rows, dtype=np.int32)
    results = []
    for library in variants.values():
        tokens, ranks = np.empty(rows, np.int64), np.empty(rows, np.int64)
        ids, logprobs = np.empty((rows, 6), np.int64), np.empty((rows, 6), np.float32)
        library.sample(
            pointer(logits), ctypes.c_int64(rows), ctypes.c_int64(vocab),
            *map(pointer, (temperature, top_p, min_p, top_k, seeds, zeros, slots)), None, pointer(tokens),
        )  # fmt: skip
        library.token_logprobs(
            pointer(logits), ctypes.c_int64(rows), ctypes.c_int64(vocab), pointer(tokens), ctypes.c_int64(5),
            *map(pointer, (ids, logprobs, ranks)),
        )  # fmt: skip
        results.append((tokens, ids, ranks, logprobs.view(np.uint32)))
    assert ((results[0][0] >= 0) & (results[0][0] < vocab)).all()
    for other in results[1:]:
        for actual, expected in zip(other, results[0]):
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("vocab", [7, 32, 333, 50_001])
def test_masked_logits_are_those_of_the_twin(variants, vocab):
    rng = np.random.default_rng(vocab)
    logits = rng.normal(size=(9, vocab)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.1] = np.nan
    logits[3] = -np.inf
    words = (vocab + 31) // 32
    masks = rng.integers(-(2**31), 2**31, (9, 1 + words)).astype(np.int32)
    masks[rng.random(masks.shape) < 0.3], masks[rng.random(masks.shape) < 0.3] = 0, -1
    masks[:, 0] = np.arange(9) > 1
    masks[5, 1:], masks[6, 1:] = 0, -1
    slots = np.array([0, 1, 2, 3, -1, 5, 6, 7, 8], np.int32)
    expected = logits.copy()
    twins.apply_token_masks(expected, masks, slots)
    for library in variants.values():
        masked = logits.copy()
        library.token_masks(
            pointer(masked), ctypes.c_int64(9), ctypes.c_int64(vocab), pointer(masks), pointer(slots)
        )  # fmt: skip
        np.testing.assert_array_equal(masked, expected)
        tokens, zeros = np.empty(9, np.int64), np.zeros(9, np.int64)
        library.sample(
            pointer(logits.copy()), ctypes.c_int64(9), ctypes.c_int64(vocab), pointer(np.zeros(9, np.float32)),
            None, None, None, None, pointer(zeros), pointer(slots), pointer(masks), pointer(tokens),
        )  # fmt: skip
        np.testing.assert_array_equal(tokens, [twins.argmax(row) for row in expected])
