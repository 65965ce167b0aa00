"""Limits of the kernels: one list for the checks in Python, the plan of memory and the C++ sources."""

from __future__ import annotations

NAME = "generated/kernel_limits.h"

# Positions of a block of the KV cache.
BLOCK_SIZES = (16, 32, 64, 128, 256)
# Of a head on the CPU, where any multiple of 8 will do.
MAX_HEAD_DIM = 256
# Rows of an int8 KV cache behind a block's keys: two floats a position, the scales of its key and its value.
KV_SCALE_ROWS = 8
# The CUDA attention kernels are compiled for each of these.
GPU_HEAD_DIMS = (64, 80, 96, 128)
# Query heads that share a key head are lines of one query tile.
MAX_GROUP = 16
# 16-bit elements of one 16-byte access: rows on a GPU are multiples of it.
GPU_ROW_MULTIPLE = 8
# Rows of the matmuls that fold their neighbours in.
MAX_SMALL_BATCH_ROWS = 128
# Inputs of a matmul whose weights are all on chip before its rows are there.
MAX_SMALL_LINEAR_FEATURES = 1536
# Parts that one context is split into, each with a partial result, and with batch_invariant the positions of a part, unless
# there would be too many parts.
MAX_ATTENTION_PARTS = 128
INVARIANT_PART_POSITIONS = 256


def choices(values: tuple[int, ...]) -> str:
    """For sentences: "64, 80, 96 or 128"."""
    return f"{', '.join(map(str, values[:-1]))} or {values[-1]}"


def text() -> str:
    """The C++ header, generated/kernel_limits.h; free of Paddle and of CUDA."""
    sizes = " || ".join(f"size == {size}" for size in BLOCK_SIZES)
    cases = "\n".join(
        f"    case {dim}: return f(std::integral_constant<int, {dim}>{{}});" for dim in GPU_HEAD_DIMS[:-1]
    )
    heads = " || ".join(f"head_dim == {dim}" for dim in GPU_HEAD_DIMS)
    return f"""// Generated from gpu_ops/kernel_limits.py.
#pragma once
#include <cstdint>
#include <type_traits>

namespace bireme {{

constexpr int64_t kMaxHeadDim = {MAX_HEAD_DIM}, kKvScaleRows = {KV_SCALE_ROWS};
constexpr int kMaxGroup = {MAX_GROUP}, kSmallBatchRows = {MAX_SMALL_BATCH_ROWS};
constexpr int kMaxSmallLinearFeatures = {MAX_SMALL_LINEAR_FEATURES};
constexpr int kMaxAttentionParts = {MAX_ATTENTION_PARTS}, kInvariantPartPositions = {INVARIANT_PART_POSITIONS};

constexpr const char* kBlockSizes = "{choices(BLOCK_SIZES)}";
constexpr bool is_block_size(int64_t size) {{ return {sizes}; }}

constexpr const char* kGpuHeadDims = "{choices(GPU_HEAD_DIMS)}";
constexpr bool is_gpu_head_dim(int64_t head_dim) {{ return {heads}; }}

// Calls f with the head size, one of those for a GPU, as a constant.
template <typename F>
auto with_gpu_head_dim(int head_dim, F&& f) {{
  switch (head_dim) {{
{cases}
    default: return f(std::integral_constant<int, {GPU_HEAD_DIMS[-1]}>{{}});
  }}
}}

}}  // namespace bireme
"""
