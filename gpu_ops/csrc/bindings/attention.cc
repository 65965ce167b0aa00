// rotary_kv_write, paged_attention.
#include "../kernels/attention.h"

#include "checks.h"

namespace {
constexpr auto kFloat = paddle::DataType::FLOAT32;
constexpr auto kInt32 = paddle::DataType::INT32;

bireme::AttentionShape check_attention(const paddle::Tensor& qkv, const paddle::Tensor& k_cache,
                                       const paddle::Tensor& v_cache, const paddle::Tensor& block_tables,
                                       const paddle::Tensor& positions, const paddle::Tensor& batch_id_per_token,
                                       int64_t q_heads, int64_t kv_heads) {
  PD_CHECK(kv_heads >= 1 && q_heads >= kv_heads && q_heads % kv_heads == 0, "q_heads: is ", q_heads,
           ", needs to be a multiple of kv_heads, which is ", kv_heads);
  check_shape(k_cache, "k_cache", kFloat, {kAnySize, kv_heads, kAnySize, kAnySize});
  bireme::AttentionShape shape{};
  shape.q_heads = q_heads;
  shape.kv_heads = kv_heads;
  shape.blocks = k_cache.shape()[0];
  shape.head_dim = k_cache.shape()[2];
  shape.block_size = k_cache.shape()[3];
  PD_CHECK(shape.head_dim % 8 == 0 && shape.head_dim >= 8 && shape.head_dim <= 256, "k_cache: has a head size of ",
           shape.head_dim, ", needs a multiple of 8 up to 256");
  PD_CHECK(shape.block_size >= 16 && shape.block_size <= 256 && 256 % shape.block_size == 0, "k_cache: has a block size of ",
           shape.block_size, ", needs 16, 32, 64, 128 or 256");
  check_shape(v_cache, "v_cache", kFloat, {shape.blocks, kv_heads, shape.block_size, shape.head_dim});
  check_shape(qkv, "qkv", kFloat, {kAnySize, (q_heads + 2 * kv_heads) * shape.head_dim});
  shape.rows = qkv.shape()[0];
  check_shape(positions, "positions", kInt32, {shape.rows});
  check_shape(batch_id_per_token, "batch_id_per_token", kInt32, {shape.rows});
  check_shape(block_tables, "block_tables", kInt32, {kAnySize, kAnySize});
  shape.slots = block_tables.shape()[0];
  shape.table_width = block_tables.shape()[1];
  check_not_empty(qkv, "qkv");
  check_cpu(qkv, "qkv");
  check_cpu(k_cache, "k_cache");
  check_cpu(v_cache, "v_cache");
  return shape;
}

void check_fault(const bireme::RowFault& fault) { PD_CHECK(fault.row < 0, fault.what, " (row ", fault.row, ")"); }
}  // namespace

void RotaryKvWrite(const paddle::Tensor& qkv, const paddle::Tensor& cos_sin, const paddle::Tensor& positions,
                   const paddle::Tensor& batch_id_per_token, const paddle::Tensor& block_tables,
                   const paddle::Tensor& k_cache, const paddle::Tensor& v_cache, int64_t q_heads, int64_t kv_heads) {
  const auto shape =
      check_attention(qkv, k_cache, v_cache, block_tables, positions, batch_id_per_token, q_heads, kv_heads);
  check_shape(cos_sin, "cos_sin", kFloat, {kAnySize, shape.head_dim});
  check_fault(bireme::rotary_kv_write_cpu(mutable_data<float>(qkv), cos_sin.data<float>(), cos_sin.shape()[0],
                                          positions.data<int32_t>(), batch_id_per_token.data<int32_t>(),
                                          block_tables.data<int32_t>(), mutable_data<float>(k_cache),
                                          mutable_data<float>(v_cache), shape));
}

std::vector<paddle::Tensor> PagedAttention(const paddle::Tensor& qkv, const paddle::Tensor& k_cache,
                                           const paddle::Tensor& v_cache, const paddle::Tensor& block_tables,
                                           const paddle::Tensor& positions, const paddle::Tensor& batch_id_per_token,
                                           int64_t q_heads, int64_t kv_heads, float scale) {
  const auto shape =
      check_attention(qkv, k_cache, v_cache, block_tables, positions, batch_id_per_token, q_heads, kv_heads);
  auto out = paddle::empty({shape.rows, q_heads * shape.head_dim}, kFloat, qkv.place());
  check_fault(bireme::paged_attention_cpu(qkv.data<float>(), k_cache.data<float>(), v_cache.data<float>(),
                                          block_tables.data<int32_t>(), positions.data<int32_t>(),
                                          batch_id_per_token.data<int32_t>(), scale, shape, out.data<float>()));
  return {out};
}

PD_BUILD_OP(bireme_rotary_kv_write)
    .Inputs({"qkv", "cos_sin", "positions", "batch_id_per_token", "block_tables", "k_cache", "v_cache"})
    .Attrs({"q_heads: int64_t", "kv_heads: int64_t"})
    .Outputs({"qkv_out", "k_cache_out", "v_cache_out"})
    .SetInplaceMap({{"qkv", "qkv_out"}, {"k_cache", "k_cache_out"}, {"v_cache", "v_cache_out"}})
    .SetKernelFn(PD_KERNEL(RotaryKvWrite));
PD_BUILD_OP(bireme_paged_attention)
    .Inputs({"qkv", "k_cache", "v_cache", "block_tables", "positions", "batch_id_per_token"})
    .Attrs({"q_heads: int64_t", "kv_heads: int64_t", "scale: float"})
    .Outputs({"out"})
    .SetKernelFn(PD_KERNEL(PagedAttention));
