"""Limits of the kernels: refusals in Python and in C++ name the same values."""

from __future__ import annotations

import paddle
import pytest

from gpu_ops import forward as ops
from gpu_ops import kernel_limits
from gpu_ops.kv_cache import kv_cache_shape
from gpu_ops.sources import CSRC, generated_headers, with_includes


def call_with_block_size(size: int) -> None:
    ops.paged_attention(
        paddle.zeros([1, 24]),
        paddle.zeros([2, 1, 8, size]),
        paddle.zeros([2, 1, size, 8]),
        paddle.zeros([1, 2], "int32"),
        paddle.zeros([1], "int32"),
        paddle.zeros([1], "int32"),
        q_heads=1,
        kv_heads=1,
        scale=1.0,
    )


@pytest.mark.parametrize("size", kernel_limits.BLOCK_SIZES)
def test_a_block_size_of_the_list_is_taken(size):
    kv_cache_shape(1, size, 1, 8)
    call_with_block_size(size)


@pytest.mark.parametrize("size", [8, 24, 48, 512])
def test_another_block_size_is_refused_in_the_same_words(size):
    needed = f"needs (to be )?{kernel_limits.choices(kernel_limits.BLOCK_SIZES)}"
    with pytest.raises(ValueError, match=needed):
        kv_cache_shape(1, size, 1, 8)
    with pytest.raises((RuntimeError, ValueError, OSError), match=needed):
        call_with_block_size(size)


@pytest.mark.parametrize(
    "name",
    ["attention/cuda/attention_decode.cu", "attention/paged_attention.cc", "linear/cuda/small_linear.cu"],
)
def test_kernels_read_their_limits_from_the_list(name):
    """A changed limit builds these files anew."""
    assert generated_headers()[kernel_limits.NAME] in with_includes(CSRC / "kernels" / name)
