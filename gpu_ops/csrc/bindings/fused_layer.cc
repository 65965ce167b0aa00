// fused_layer: a custom-op call costs about 10 us of dispatch, nine of them a layer a tenth of a decode step.
#include "kernels/layers/fused_layer.h"

#include "bindings/attention_checks.h"
#include "bindings/quantised_checks.h"

namespace {
using OptionalTensor = paddle::optional<paddle::Tensor>;
constexpr auto kFloat = paddle::DataType::FLOAT32;

bool is_quantised(const paddle::Tensor& weight) { return weight.dtype() == paddle::DataType::UINT8; }

int64_t inputs_of(const paddle::Tensor& weight, const char* name) {
  if (is_quantised(weight)) return quantised_weight(weight, name).in_features;
  check_shape(weight, name, kFloat, {kAnySize, kAnySize, kAnySize});
  return weight.shape()[1];
}

bireme::LinearWeight linear_weight(const paddle::Tensor& weight, const char* name, int64_t out_features, int64_t in_features) {
  if (is_quantised(weight)) {
    const auto quantised = quantised_weight(weight, name);
    PD_CHECK(quantised.out_features == out_features && quantised.in_features == in_features, name, ": is a quantised weight [",
             quantised.out_features, ", ", quantised.in_features, "], needs [", out_features, ", ", in_features, "]");
    return {nullptr, quantised};
  }
  check_shape(weight, name, kFloat, {bireme::panel_count(out_features), in_features, bireme::kPanelColumns});
  return {weight.data<float>(), {}};
}

const float* vector_data(const paddle::Tensor& vector, const char* name, int64_t size) {
  check_shape(vector, name, kFloat, {size});
  return vector.data<float>();
}

const float* vector_data(const OptionalTensor& vector, const char* name, int64_t size) {
  return vector ? vector_data(*vector, name, size) : nullptr;
}
}  // namespace

std::vector<paddle::Tensor> FusedLayer(
    const paddle::Tensor& hidden, const paddle::Tensor& residual, const paddle::Tensor& qkv, const OptionalTensor& qkv_bias,
    const OptionalTensor& q_norm, const OptionalTensor& k_norm, const paddle::Tensor& o, const OptionalTensor& o_bias,
    const paddle::Tensor& post_attention_norm, const paddle::Tensor& gate_up, const OptionalTensor& gate_up_bias,
    const paddle::Tensor& down, const OptionalTensor& down_bias, const paddle::Tensor& next_norm,
    const paddle::Tensor& cos_sin, const paddle::Tensor& positions, const paddle::Tensor& batch_id_per_token,
    const paddle::Tensor& block_tables, const paddle::Tensor& k_cache, const paddle::Tensor& v_cache, int64_t q_heads,
    int64_t kv_heads, float eps, float scale) {
  check_shape(hidden, "hidden", kFloat, {kAnySize, kAnySize});
  check_not_empty(hidden, "hidden");
  check_cpu(hidden, "hidden");
  const int64_t rows = hidden.shape()[0], size = hidden.shape()[1];
  check_shape(residual, "residual", kFloat, {rows, size});
  const auto shape =
      check_cache(rows, k_cache, v_cache, block_tables, positions, batch_id_per_token, q_heads, kv_heads);
  check_shape(cos_sin, "cos_sin", kFloat, {kAnySize, shape.head_dim});
  PD_CHECK(static_cast<bool>(q_norm) == static_cast<bool>(k_norm), "k_norm: needs to come with q_norm, or neither");

  const int64_t qkv_size = (q_heads + 2 * kv_heads) * shape.head_dim;
  bireme::FusedLayerWeights weights{};
  weights.hidden = size;
  weights.inner = inputs_of(down, "down");
  weights.qkv = linear_weight(qkv, "qkv", qkv_size, size);
  weights.qkv_bias = vector_data(qkv_bias, "qkv_bias", qkv_size);
  weights.q_norm = vector_data(q_norm, "q_norm", shape.head_dim);
  weights.k_norm = vector_data(k_norm, "k_norm", shape.head_dim);
  weights.o = linear_weight(o, "o", size, q_heads * shape.head_dim);
  weights.o_bias = vector_data(o_bias, "o_bias", size);
  weights.post_attention_norm = vector_data(post_attention_norm, "post_attention_norm", size);
  weights.gate_up = linear_weight(gate_up, "gate_up", 2 * weights.inner, size);
  weights.gate_up_bias = vector_data(gate_up_bias, "gate_up_bias", 2 * weights.inner);
  weights.down = linear_weight(down, "down", size, weights.inner);
  weights.down_bias = vector_data(down_bias, "down_bias", size);
  weights.next_norm = vector_data(next_norm, "next_norm", size);

  auto out = paddle::empty({rows, size}, kFloat, hidden.place());
  check_fault(bireme::fused_layer_cpu(weights, hidden.data<float>(), mutable_data<float>(residual), cos_sin.data<float>(),
                                      cos_sin.shape()[0], positions.data<int32_t>(), batch_id_per_token.data<int32_t>(),
                                      block_tables.data<int32_t>(), kv_cache(k_cache, v_cache), eps, scale, shape,
                                      out.data<float>()));
  return {out};
}

PD_BUILD_OP(bireme_fused_layer)
    .Inputs({"hidden", "residual", "qkv", paddle::Optional("qkv_bias"), paddle::Optional("q_norm"),
             paddle::Optional("k_norm"), "o", paddle::Optional("o_bias"), "post_attention_norm", "gate_up",
             paddle::Optional("gate_up_bias"), "down", paddle::Optional("down_bias"), "next_norm", "cos_sin", "positions",
             "batch_id_per_token", "block_tables", "k_cache", "v_cache"})
    .Attrs({"q_heads: int64_t", "kv_heads: int64_t", "eps: float", "scale: float"})
    .Outputs({"out", "residual_out", "k_cache_out", "v_cache_out"})
    .SetInplaceMap({{"residual", "residual_out"}, {"k_cache", "k_cache_out"}, {"v_cache", "v_cache_out"}})
    .SetKernelFn(PD_KERNEL(FusedLayer));
