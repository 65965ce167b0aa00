"""The decode attention kernel built for a CPU, from its CUDA source: instructions replaced, everything else as it is."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from gpu_ops.sources import CSRC, write_generated_headers
from tests.gpu_ops.compiled import shared_libraries

_HERE = Path(__file__).parent
# By the beginning of an asm statement: what stands for it.
_INSTRUCTIONS = {
    "ex2.approx.ftz.f32": "y = exp2f(x);",
    "movmatrix.sync.aligned.m8n8.trans.b16": "turned = on_cpu::transposed(pair);",
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": "on_cpu::multiply<__half>(c, a, b0, b1);",
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32": "on_cpu::multiply<__nv_bfloat16>(c, a, b0, b1);",
    "cp.async.cg.shared.global": "on_cpu::copy(to, from, present);",
    "cp.async.cg.shared.global.L2::128B": "on_cpu::copy(to, from, true);",
    "cp.async.commit_group;": "",
    "cp.async.wait_group": "",
    "ldmatrix.sync.aligned.m8n8.x4.shared.b16": "on_cpu::load_matrices(r, row, false);",
    "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16": "on_cpu::load_matrices(r, row, true);",
    "griddepcontrol.wait;": "",
    "griddepcontrol.launch_dependents;": "",
}
_FLAGS = ["-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas"]


def build(folder: Path) -> ctypes.CDLL:
    """The library with ``decode_attention`` of ``decode_attention.cc``, built into ``folder``."""
    for source in [*CSRC.glob("kernels/*/cuda/*.cuh"), *CSRC.glob("kernels/*/cuda/*.h")]:
        copy = folder / source.relative_to(CSRC)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(_without_instructions(source.read_text()))
    write_generated_headers(folder)
    kernel = folder / "attention_decode_kernel.cc"
    kernel.write_text(_without_instructions((CSRC / "kernels/attention/cuda/attention_decode.cu").read_text()))
    library = folder / "decode_attention.so"
    flags = [*_FLAGS, f"-I{folder}", f"-I{_HERE}", "-include", "instructions.h"]
    shared_libraries({library: flags}, [kernel, _HERE / "decode_attention.cc"])
    loaded = ctypes.CDLL(str(library))
    loaded.decode_attention.restype = ctypes.c_int64
    return loaded


def _without_instructions(source: str) -> str:
    def instead(statement: re.Match) -> str:
        # What no decode kernel calls may stay unknown: it does not compile if it is called after all.
        return _INSTRUCTIONS.get(statement[1], f"on_cpu::unknown_instruction(); // {statement[1]}\n")

    source = re.sub(r'asm volatile\("(\S+?)[ "][\s\S]*?\);(?=\s)', instead, source)
    source = re.sub(r'asm\("(\S+?)[ "][\s\S]*?\);(?=\s)', instead, source)
    return re.sub(r"extern __shared__ .*?(\w+)\[\];", r"unsigned char* const \1 = on_cpu::dynamic_shared();", source)
