// Checks shared by the ops that read or write the paged cache.
#pragma once
#include "generated/kernel_limits.h"
#include "kernels/attention/attention.h"
#include "bindings/checks.h"

inline bireme::KvType kv_type(const paddle::Tensor& k_cache) {
  switch (k_cache.dtype()) {
    case paddle::DataType::FLOAT32: return bireme::KvType::kFloat32;
    case paddle::DataType::BFLOAT16: return bireme::KvType::kBfloat16;
    case paddle::DataType::INT8: return bireme::KvType::kInt8;
    default: PD_THROW("k_cache: has dtype ", phi::DataTypeToString(k_cache.dtype()), ", needs float32, bfloat16 or int8");
  }
}

// The op owns the right to write it (SetInplaceMap).
inline bireme::KvCache kv_cache(const paddle::Tensor& k_cache, const paddle::Tensor& v_cache) {
  return {kv_type(k_cache), const_cast<void*>(k_cache.data()), const_cast<void*>(v_cache.data())};
}

// The cache and what places `rows` rows in it.
inline bireme::AttentionShape check_cache(int64_t rows, const paddle::Tensor& k_cache, const paddle::Tensor& v_cache,
                                          const paddle::Tensor& block_tables, const paddle::Tensor& positions,
                                          const paddle::Tensor& batch_id_per_token, int64_t q_heads, int64_t kv_heads) {
  constexpr auto kInt32 = paddle::DataType::INT32;
  PD_CHECK(kv_heads >= 1 && q_heads >= kv_heads && q_heads % kv_heads == 0, "q_heads: is ", q_heads,
           ", needs to be a multiple of kv_heads, which is ", kv_heads);
  const int64_t scale_rows = kv_type(k_cache) == bireme::KvType::kInt8 ? bireme::kKvScaleRows : 0;
  check_shape(k_cache, "k_cache", k_cache.dtype(), {kAnySize, kv_heads, kAnySize, kAnySize});
  bireme::AttentionShape shape{};
  shape.rows = rows;
  shape.q_heads = q_heads;
  shape.kv_heads = kv_heads;
  shape.blocks = k_cache.shape()[0];
  shape.head_dim = k_cache.shape()[2] - scale_rows;
  shape.block_size = k_cache.shape()[3];
  PD_CHECK(shape.head_dim % 8 == 0 && shape.head_dim >= 8 && shape.head_dim <= bireme::kMaxHeadDim,
           "k_cache: has a head size of ", shape.head_dim, ", needs a multiple of 8 up to ", bireme::kMaxHeadDim);
  PD_CHECK(bireme::is_block_size(shape.block_size), "k_cache: has a block size of ", shape.block_size, ", needs ",
           bireme::kBlockSizes);
  check_shape(v_cache, "v_cache", k_cache.dtype(), {shape.blocks, kv_heads, shape.block_size, shape.head_dim});
  check_shape(positions, "positions", kInt32, {rows});
  check_shape(batch_id_per_token, "batch_id_per_token", kInt32, {rows});
  check_shape(block_tables, "block_tables", kInt32, {kAnySize, kAnySize});
  shape.slots = block_tables.shape()[0];
  shape.table_width = block_tables.shape()[1];
  check_cpu(k_cache, "k_cache");
  check_cpu(v_cache, "v_cache");
  return shape;
}

// The same, with the rows' projections.
inline bireme::AttentionShape check_attention(const paddle::Tensor& qkv, const paddle::Tensor& k_cache,
                                              const paddle::Tensor& v_cache, const paddle::Tensor& block_tables,
                                              const paddle::Tensor& positions, const paddle::Tensor& batch_id_per_token,
                                              int64_t q_heads, int64_t kv_heads) {
  constexpr auto kFloat = paddle::DataType::FLOAT32;
  check_shape(qkv, "qkv", kFloat, {kAnySize, kAnySize});
  const auto shape =
      check_cache(qkv.shape()[0], k_cache, v_cache, block_tables, positions, batch_id_per_token, q_heads, kv_heads);
  check_shape(qkv, "qkv", kFloat, {kAnySize, (q_heads + 2 * kv_heads) * shape.head_dim});
  check_not_empty(qkv, "qkv");
  check_cpu(qkv, "qkv");
  return shape;
}

inline void check_fault(const bireme::RowFault& fault) { PD_CHECK(fault.row < 0, fault.what, " (row ", fault.row, ")"); }
