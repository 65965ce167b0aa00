// Checks of the paged cache on the GPU, where keys lie as values do.
#pragma once
#include "generated/kernel_limits.h"
#include "kernels/attention/cuda/attention.h"
#include "bindings/device.h"

// Sizes and tables for the CUDA kernels, for `rows` rows. Caches are [blocks, kv_heads, block_size, head_dim], both of them.
inline bireme::CudaRows check_cuda_cache(int64_t rows, paddle::DataType dtype, const paddle::Tensor& k_cache,
                                         const paddle::Tensor& v_cache, const paddle::Tensor& block_tables,
                                         const paddle::Tensor& positions, const paddle::Tensor& batch_id_per_token, int64_t q_heads,
                                         int64_t kv_heads) {
  constexpr auto kIndex = paddle::DataType::INT32;
  PD_CHECK(kv_heads >= 1 && q_heads >= kv_heads && q_heads % kv_heads == 0, "q_heads: is ", q_heads,
           ", needs to be a multiple of kv_heads, which is ", kv_heads);
  check_shape(k_cache, "k_cache", dtype, {kAnySize, kv_heads, kAnySize, kAnySize});
  const int64_t blocks = k_cache.shape()[0], block_size = k_cache.shape()[2], head_dim = k_cache.shape()[3];
  PD_CHECK(bireme::is_block_size(block_size), "k_cache: has a block size of ", block_size, ", needs ", bireme::kBlockSizes);
  if constexpr (kWithCuda) {
    PD_CHECK(bireme::attention_supports(head_dim, q_heads, kv_heads), "k_cache: has a head size of ", head_dim, " and ",
             q_heads / kv_heads, " query heads a key head, needs ", bireme::kGpuHeadDims, " and at most ", bireme::kMaxGroup, " on the GPU");
  }
  check_shape(v_cache, "v_cache", dtype, {blocks, kv_heads, block_size, head_dim});
  check_shape(positions, "positions", kIndex, {rows});
  check_shape(batch_id_per_token, "batch_id_per_token", kIndex, {rows});
  check_shape(block_tables, "block_tables", kIndex, {kAnySize, kAnySize});
  check_same_place(k_cache, "k_cache", v_cache, "v_cache", block_tables, "block_tables", positions, "positions",
                   batch_id_per_token, "batch_id_per_token");
  const auto size = [](int64_t value) { return static_cast<int>(value); };
  return {size(rows), size(q_heads), size(kv_heads), size(head_dim), size(blocks), size(block_size),
          size(block_tables.shape()[0]), size(block_tables.shape()[1]), positions.data<int32_t>(),
          batch_id_per_token.data<int32_t>(), block_tables.data<int32_t>()};
}

// The same, with the rows' projections.
inline bireme::CudaRows check_cuda_attention(const paddle::Tensor& qkv, const paddle::Tensor& k_cache, const paddle::Tensor& v_cache,
                                             const paddle::Tensor& block_tables, const paddle::Tensor& positions,
                                             const paddle::Tensor& batch_id_per_token, int64_t q_heads, int64_t kv_heads) {
  const paddle::DataType dtype = float_type(qkv, "qkv");
  check_shape(qkv, "qkv", dtype, {kAnySize, kAnySize});
  const auto rows =
      check_cuda_cache(qkv.shape()[0], dtype, k_cache, v_cache, block_tables, positions, batch_id_per_token, q_heads, kv_heads);
  check_shape(qkv, "qkv", dtype, {kAnySize, (q_heads + 2 * kv_heads) * rows.head_dim});
  check_not_empty(qkv, "qkv");
  check_same_place(qkv, "qkv", k_cache, "k_cache");
  return rows;
}
