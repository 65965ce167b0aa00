"""The CUDA kernels compile for every chip that a build is for. Needs nvcc, no GPU and no Paddle for GPUs."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gpu_ops.build import CUDA_FLAGS, OpBuildError, cuda_targets
from gpu_ops.sources import CSRC, write_generated_headers

NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
KERNELS = sorted(CSRC.glob("kernels/*/cuda/*.cu"))

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


def compile_kernel(source: Path, folder: Path, *options: str) -> None:
    target = folder / f"{source.stem}.o"
    command = [str(NVCC), *CUDA_FLAGS, *cuda_targets(), *options, "-c", str(source), "-o", str(target)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{source.name}:\n{result.stderr[-3000:]}"


def images(fatbin: bytes) -> set[tuple[str, int]]:
    """What a fat binary is made of: a header with its size at byte 6, then images with kind, sizes and chip."""
    found = set()
    (at,) = struct.unpack_from("<H", fatbin, 6)
    while at < len(fatbin):
        kind, header, payload = struct.unpack_from("<HxxIQ", fatbin, at)
        found.add(({1: "PTX", 2: "machine code"}[kind], struct.unpack_from("<I", fatbin, at + 28)[0]))
        at += header + payload
    return found


@needs_nvcc
def test_a_build_holds_machine_code_for_three_chips_and_ptx_for_later_ones(tmp_path, monkeypatch):
    monkeypatch.delenv("BIREME_CUDA_ARCHS", raising=False)
    options = [*write_generated_headers(tmp_path), "--keep", "--keep-dir", str(tmp_path)]
    compile_kernel(CSRC / "kernels/device/cuda/events.cu", tmp_path, *options)
    (fatbin,) = tmp_path.glob("*.fatbin")
    assert images(fatbin.read_bytes()) == {
        ("machine code", 80),
        ("machine code", 89),
        ("machine code", 90),
        ("PTX", 90),
    }
    assert any("compute_90a" in path.name for path in tmp_path.glob("*.cubin")), (
        "the 90 is a 90a, which has wgmma and TMA"
    )


@needs_nvcc
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif("BIREME_COMPILE_CUDA" not in os.environ, reason="takes minutes: set BIREME_COMPILE_CUDA=1")
def test_every_kernel_compiles_for_every_chip(tmp_path):
    includes = write_generated_headers(tmp_path)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda source: compile_kernel(source, tmp_path, *includes), KERNELS))
    assert {path.stem for path in tmp_path.glob("*.o")} == {source.stem for source in KERNELS}


@pytest.mark.parametrize(
    ("targets", "message"),
    [("80 ninety", "got ninety, needs entries like 80, 90a or 90"), ("90a 80+PTX", "PTX needs 90 or later")],
)
def test_targets_are_refused_by_name(monkeypatch, targets, message):
    monkeypatch.setenv("BIREME_CUDA_ARCHS", targets)
    with pytest.raises(OpBuildError, match=message):
        cuda_targets()
