"""The AVX-512 kernels give the twin's bits, with their instructions in plain C++ where the processor has none."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import numpy as np
import pytest

from gpu_ops.build import KERNEL_FLAGS
from gpu_ops.quantised.packing import pack_rows
from gpu_ops.quantised.stored_rows import BLOCK_TYPES
from gpu_ops.sources import CSRC, write_generated_headers
from gpu_ops.twins import quantised as twins
from tests.gpu_ops.compiled import shared_libraries
from tests.gpu_ops.quantised.random_rows import random_rows, width_of

FOLDER = Path(__file__).parent
NAMES = ("quantised/quantised", "quantised/panel_portable", "device/thread_pool")


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    if platform.machine() != "x86_64":
        pytest.skip("x86-64 instructions")
    target = tmp_path_factory.mktemp("avx512") / "panels.so"
    flags = ["-O0" if flag == "-O3" else flag for flag in KERNEL_FLAGS if flag not in ("-march=native", "-Wall")]
    includes = [f"-I{FOLDER / 'avx512_on_cpu'}", *write_generated_headers(target.parent)]
    shared_libraries(
        {target: [*flags, *includes]}, [FOLDER / "panels_on_cpu.cc", *(CSRC / f"kernels/{n}.cc" for n in NAMES)]
    )
    return ctypes.CDLL(str(target))


@pytest.mark.parametrize("kind", sorted(BLOCK_TYPES))
@pytest.mark.parametrize("quant", [None, 0xFF])
def test_the_bits_are_those_of_the_twin(library: ctypes.CDLL, kind: str, quant: int | None):
    random = np.random.default_rng(0)
    width = width_of([kind], 3)
    weight = pack_rows([random_rows(random, kind, 70, width, quant=quant)])
    bias = random.standard_normal(70, np.float32)
    for rows in range(1, 10):
        x = random.standard_normal((rows, width), np.float32)
        if rows == 9:
            x[:, 32:] = np.where(np.arange(width - 32) % 2, 1, -1)
        expected = twins.quantised_linear(x, weight, bias)
        for avx512, tile in ((0, 2), (1, 8)):
            y = np.empty((rows, 70), np.float32)
            pointers = [ctypes.c_void_p(array.ctypes.data) for array in (x, weight, bias, y)]
            found = library.linear(pointers[0], ctypes.c_int64(rows), pointers[1], ctypes.c_int64(weight.nbytes), pointers[2],
                                   ctypes.c_int64(avx512), pointers[3])  # fmt: skip
            assert found == tile
            assert (y.view(np.int32) == expected.view(np.int32)).all()
