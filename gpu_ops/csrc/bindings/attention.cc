// rotary_kv_write, paged_attention.
#include "attention_checks.h"

namespace {
constexpr auto kFloat = paddle::DataType::FLOAT32;
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
