"""Ops on quantised weights, on the CPU. Twins in NumPy, which are the specification bit by bit: ``gpu_ops.twins.quantised``.

A row's result depends on that row's inputs alone: not on the other rows, how many there are, the number of threads or the
instruction set.
"""

from __future__ import annotations

import paddle

from gpu_ops.loader import run_op

INSTRUCTION_SETS = ("avx512", "avx2", "portable")


def quantised_linear(
    x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None = None, instruction_set: str = ""
) -> paddle.Tensor:
    """x W^T + bias, where blocks of 32 inputs of x are rounded to 8 bits first.

    Args:
        x: [T, in_features].
        weight: uint8, W as ``gpu_ops.quantised.packing.pack_rows`` returned it.
        bias: [out_features] or None.
        instruction_set: one of INSTRUCTION_SETS; default the best that the processor has.
    Returns:
        [T, out_features]; NaN in a row whose inputs are not finite.
    Raises:
        RuntimeError, ValueError, OSError: a shape is wrong, or the processor lacks the instruction set.
    """
    return run_op("quantised_linear", x, weight, bias, instruction_set)[0]


def quantised_embedding(weight: paddle.Tensor, ids: paddle.Tensor) -> paddle.Tensor:
    """Rows of a quantised weight as float32: ids int64 [T] -> [T, in_features]; zeros for an id that is none of its rows."""
    return run_op("quantised_embedding", weight, ids)[0]
