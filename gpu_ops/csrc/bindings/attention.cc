// rotary_kv_write, paged_attention.
#include "bindings/attention_checks.h"
#include "bindings/cuda_attention_checks.h"

namespace {
constexpr auto kFloat = paddle::DataType::FLOAT32;
}  // namespace

void RotaryKvWrite(const paddle::Tensor& qkv, const paddle::Tensor& cos_sin, const paddle::Tensor& positions,
                   const paddle::Tensor& batch_id_per_token, const paddle::Tensor& block_tables,
                   const paddle::Tensor& k_cache, const paddle::Tensor& v_cache, int64_t q_heads, int64_t kv_heads) {
  if constexpr (kWithCuda) {
    if (qkv.is_gpu()) {
      const auto rows =
          check_cuda_attention(qkv, k_cache, v_cache, block_tables, positions, batch_id_per_token, q_heads, kv_heads);
      check_shape(cos_sin, "cos_sin", kFloat, {kAnySize, rows.head_dim});
      check_same_place(qkv, "qkv", cos_sin, "cos_sin");
      return on_device([&] {
        bireme::rotary_kv_write_cuda(half_of(qkv.dtype()), raw_data(qkv), cos_sin.data<float>(),
                                     static_cast<int>(cos_sin.shape()[0]), raw_data(k_cache), raw_data(v_cache), rows,
                                     stream_of(qkv));
      });
    }
  }
  const auto shape =
      check_attention(qkv, k_cache, v_cache, block_tables, positions, batch_id_per_token, q_heads, kv_heads);
  check_shape(cos_sin, "cos_sin", kFloat, {kAnySize, shape.head_dim});
  check_fault(bireme::rotary_kv_write_cpu(mutable_data<float>(qkv), cos_sin.data<float>(), cos_sin.shape()[0],
                                          positions.data<int32_t>(), batch_id_per_token.data<int32_t>(),
                                          block_tables.data<int32_t>(), kv_cache(k_cache, v_cache), shape));
}

std::vector<paddle::Tensor> PagedAttention(const paddle::Tensor& qkv, const paddle::Tensor& k_cache,
                                           const paddle::Tensor& v_cache, const paddle::Tensor& block_tables,
                                           const paddle::Tensor& positions, const paddle::Tensor& batch_id_per_token,
                                           const paddle::optional<paddle::Tensor>& cu_seqlens_q, int64_t q_heads,
                                           int64_t kv_heads, float scale, int64_t max_rows_per_slot, bool batch_invariant) {
  if constexpr (kWithCuda) {
    if (qkv.is_gpu()) {
      const auto rows =
          check_cuda_attention(qkv, k_cache, v_cache, block_tables, positions, batch_id_per_token, q_heads, kv_heads);
      if (cu_seqlens_q) {
        check_shape(*cu_seqlens_q, "cu_seqlens_q", paddle::DataType::INT32, {rows.slots + 1});
        check_same_place(qkv, "qkv", *cu_seqlens_q, "cu_seqlens_q");
        PD_CHECK(max_rows_per_slot >= 1, "max_rows_per_slot: is ", max_rows_per_slot, ", needs to be at least 1");
      }
      auto out = paddle::empty({rows.rows, q_heads * rows.head_dim}, qkv.dtype(), qkv.place());
      bireme::CudaAttention attention{};
      attention.qkv = qkv.data(), attention.k_cache = raw_data(k_cache), attention.v_cache = raw_data(v_cache);
      attention.cu_seqlens_q = cu_seqlens_q ? cu_seqlens_q->data<int32_t>() : nullptr;
      attention.max_rows_per_slot = static_cast<int>(max_rows_per_slot);
      attention.batch_invariant = batch_invariant, attention.scale = scale;
      attention.out = out.data();
      on_device([&] {
        attention.partials = bireme::attention_scratch(bireme::attention_partials(attention, rows), stream_of(qkv));
        bireme::paged_attention_cuda(half_of(qkv.dtype()), attention, rows, stream_of(qkv));
      });
      return {out};
    }
  }
  const auto shape =
      check_attention(qkv, k_cache, v_cache, block_tables, positions, batch_id_per_token, q_heads, kv_heads);
  auto out = paddle::empty({shape.rows, q_heads * shape.head_dim}, kFloat, qkv.place());
  check_fault(bireme::paged_attention_cpu(qkv.data<float>(), kv_cache(k_cache, v_cache), block_tables.data<int32_t>(),
                                          positions.data<int32_t>(), batch_id_per_token.data<int32_t>(), scale, shape,
                                          out.data<float>()));
  return {out};
}

PD_BUILD_OP(bireme_rotary_kv_write)
    .Inputs({"qkv", "cos_sin", "positions", "batch_id_per_token", "block_tables", "k_cache", "v_cache"})
    .Attrs({"q_heads: int64_t", "kv_heads: int64_t"})
    .Outputs({"qkv_out", "k_cache_out", "v_cache_out"})
    .SetInplaceMap({{"qkv", "qkv_out"}, {"k_cache", "k_cache_out"}, {"v_cache", "v_cache_out"}})
    .SetKernelFn(PD_KERNEL(RotaryKvWrite));
PD_BUILD_OP(bireme_paged_attention)
    .Inputs({"qkv", "k_cache", "v_cache", "block_tables", "positions", "batch_id_per_token",
             paddle::Optional("cu_seqlens_q")})
    .Attrs({"q_heads: int64_t", "kv_heads: int64_t", "scale: float", "max_rows_per_slot: int64_t", "batch_invariant: bool"})
    .Outputs({"out"})
    .SetKernelFn(PD_KERNEL(PagedAttention));
