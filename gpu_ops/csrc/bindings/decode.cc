// What a small batch of decoding rows is computed by on the GPU: small_batch_linear, add_small_batch_linear, decode_attention.
#include "kernels/linear/cuda/small_batch_linear.h"
#include "bindings/cuda_attention_checks.h"
#include "bindings/cuda_linear_checks.h"

namespace {
constexpr auto kFloat = paddle::DataType::FLOAT32;

bireme::SmallBatchLinear check_small_batch(const paddle::Tensor& x, const paddle::Tensor& weight,
                                           const paddle::optional<paddle::Tensor>& bias, int64_t out_features) {
  PD_CHECK(kWithCuda && x.is_gpu(), "x: needs to lie on the GPU");
  const int64_t in_features = check_cuda_linear(x, weight, "weight", bias, out_features);
  PD_CHECK(x.shape()[0] <= bireme::kSmallBatchRows, "x: has ", x.shape()[0], " rows, needs at most ", bireme::kSmallBatchRows);
  bireme::SmallBatchLinear linear{};
  linear.type = half_of(x.dtype());
  linear.rows = static_cast<int>(x.shape()[0]);
  linear.in_features = static_cast<int>(in_features), linear.out_features = static_cast<int>(out_features);
  linear.x = x.data(), linear.weight = weight.data(), linear.bias = bias ? bias->data() : nullptr;
  return linear;
}

void run(const bireme::SmallBatchLinear& linear, const paddle::Tensor& x) {
  if constexpr (kWithCuda) on_device([&] { bireme::small_batch_linear_cuda(linear, stream_of(x)); });
}
}  // namespace

std::vector<paddle::Tensor> SmallBatchLinear(const paddle::Tensor& x, const paddle::Tensor& weight,
                                             const paddle::optional<paddle::Tensor>& bias,
                                             const paddle::optional<paddle::Tensor>& norm_weight, int64_t out_features, float eps,
                                             bool swiglu, bool float32_output) {
  auto linear = check_small_batch(x, weight, bias, out_features);
  if (norm_weight) {
    check_shape(*norm_weight, "norm_weight", x.dtype(), {linear.in_features});
    check_same_place(x, "x", *norm_weight, "norm_weight");
    linear.norm_weight = norm_weight->data(), linear.eps = eps;
  }
  PD_CHECK(!swiglu || (out_features % 2 == 0 && !float32_output), "swiglu: needs an even out_features and no float32_output");
  linear.swiglu = swiglu, linear.float32_output = float32_output;
  auto y = paddle::empty({x.shape()[0], swiglu ? out_features / 2 : out_features}, float32_output ? kFloat : x.dtype(), x.place());
  linear.y = y.data();
  run(linear, x);
  return {y};
}

void AddSmallBatchLinear(const paddle::Tensor& x, const paddle::Tensor& weight, const paddle::Tensor& residual,
                         const paddle::optional<paddle::Tensor>& bias, int64_t out_features) {
  auto linear = check_small_batch(x, weight, bias, out_features);
  check_shape(residual, "residual", x.dtype(), {linear.rows, out_features});
  check_same_place(x, "x", residual, "residual");
  linear.residual = raw_data(residual);
  run(linear, x);
}

std::vector<paddle::Tensor> DecodeAttention(const paddle::Tensor& qkv, const paddle::Tensor& cos_sin,
                                            const paddle::Tensor& positions, const paddle::Tensor& batch_id_per_token,
                                            const paddle::Tensor& block_tables, const paddle::Tensor& k_cache,
                                            const paddle::Tensor& v_cache, int64_t q_heads, int64_t kv_heads, float scale,
                                            bool batch_invariant) {
  PD_CHECK(kWithCuda && qkv.is_gpu(), "qkv: needs to lie on the GPU");
  const auto rows = check_cuda_attention(qkv, k_cache, v_cache, block_tables, positions, batch_id_per_token, q_heads, kv_heads);
  check_shape(cos_sin, "cos_sin", kFloat, {kAnySize, rows.head_dim});
  check_same_place(qkv, "qkv", cos_sin, "cos_sin");
  auto out = paddle::empty({rows.rows, q_heads * rows.head_dim}, qkv.dtype(), qkv.place());
  if constexpr (kWithCuda) {
    bireme::CudaAttention attention{};
    attention.qkv = qkv.data(), attention.k_cache = raw_data(k_cache), attention.v_cache = raw_data(v_cache);
    attention.cos_sin = cos_sin.data<float>(), attention.max_positions = static_cast<int>(cos_sin.shape()[0]);
    attention.batch_invariant = batch_invariant, attention.scale = scale;
    attention.out = out.data();
    on_device([&] {
      attention.partials = bireme::attention_scratch(bireme::attention_partials(attention, rows), stream_of(qkv));
      bireme::paged_attention_cuda(half_of(qkv.dtype()), attention, rows, stream_of(qkv));
    });
  }
  return {out};
}

PD_BUILD_OP(bireme_small_batch_linear)
    .Inputs({"x", "weight", paddle::Optional("bias"), paddle::Optional("norm_weight")})
    .Attrs({"out_features: int64_t", "eps: float", "swiglu: bool", "float32_output: bool"}).Outputs({"y"})
    .SetKernelFn(PD_KERNEL(SmallBatchLinear));
PD_BUILD_OP(bireme_add_small_batch_linear)
    .Inputs({"x", "weight", "residual", paddle::Optional("bias")}).Attrs({"out_features: int64_t"})
    .Outputs({"residual_out"}).SetInplaceMap({{"residual", "residual_out"}})
    .SetKernelFn(PD_KERNEL(AddSmallBatchLinear));
PD_BUILD_OP(bireme_decode_attention)
    .Inputs({"qkv", "cos_sin", "positions", "batch_id_per_token", "block_tables", "k_cache", "v_cache"})
    .Attrs({"q_heads: int64_t", "kv_heads: int64_t", "scale: float", "batch_invariant: bool"})
    .Outputs({"out", "k_cache_out", "v_cache_out"})
    .SetInplaceMap({{"k_cache", "k_cache_out"}, {"v_cache", "v_cache_out"}})
    .SetKernelFn(PD_KERNEL(DecodeAttention));
