// fused_layers: a custom-op call costs 30 to 60 us of dispatch, so a step has one for all of its layers.
#include "kernels/layers/fused_layer.h"
#include "kernels/layers/norm.h"

#include "bindings/attention_checks.h"
#include "bindings/quantised_checks.h"

namespace {
using Tensors = std::vector<paddle::Tensor>;
using OptionalTensors = paddle::optional<std::vector<paddle::Tensor>>;
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

// Of layer `index`.
const float* vector_data(const OptionalTensors& vectors, const char* name, size_t index, int64_t size) {
  return vectors ? vector_data((*vectors)[index], name, size) : nullptr;
}

void check_count(const Tensors& tensors, const char* name, size_t count) {
  PD_CHECK(tensors.size() == count, name, ": is of ", tensors.size(), " layers, needs ", count);
}

void check_count(const OptionalTensors& tensors, const char* name, size_t count) {
  if (tensors) check_count(*tensors, name, count);
}
}  // namespace

std::vector<paddle::Tensor> FusedLayers(
    const paddle::Tensor& residual, const paddle::Tensor& input_norm, const paddle::Tensor& cos_sin, const paddle::Tensor& positions,
    const paddle::Tensor& batch_id_per_token, const paddle::Tensor& block_tables, const Tensors& qkv, const Tensors& o,
    const Tensors& gate_up, const Tensors& down, const Tensors& post_attention_norm, const Tensors& next_norm,
    const OptionalTensors& qkv_bias, const OptionalTensors& q_norm, const OptionalTensors& k_norm, const OptionalTensors& o_bias,
    const OptionalTensors& gate_up_bias, const OptionalTensors& down_bias, const Tensors& k_caches, const Tensors& v_caches,
    int64_t q_heads, int64_t kv_heads, float eps, float scale) {
  const float* norm = vector_data(input_norm, "input_norm", kAnySize);
  const int64_t size = input_norm.numel();
  check_shape(residual, "residual", kFloat, {kAnySize, size});
  check_not_empty(residual, "residual");
  check_cpu(residual, "residual");
  const int64_t rows = residual.shape()[0];
  const size_t num_layers = qkv.size();
  PD_CHECK(num_layers > 0, "qkv: is of no layer");
  check_count(o, "o", num_layers);
  check_count(gate_up, "gate_up", num_layers);
  check_count(down, "down", num_layers);
  check_count(post_attention_norm, "post_attention_norm", num_layers);
  check_count(next_norm, "next_norm", num_layers);
  check_count(qkv_bias, "qkv_bias", num_layers);
  check_count(q_norm, "q_norm", num_layers);
  check_count(k_norm, "k_norm", num_layers);
  check_count(o_bias, "o_bias", num_layers);
  check_count(gate_up_bias, "gate_up_bias", num_layers);
  check_count(down_bias, "down_bias", num_layers);
  check_count(k_caches, "k_cache", num_layers);
  check_count(v_caches, "v_cache", num_layers);
  PD_CHECK(static_cast<bool>(q_norm) == static_cast<bool>(k_norm), "k_norm: needs to come with q_norm, or neither");

  // All is checked before anything is written.
  struct Layer {
    bireme::FusedLayerWeights weights;
    bireme::AttentionShape shape;
    bireme::KvCache cache;
  };
  std::vector<Layer> layers(num_layers);
  for (size_t i = 0; i < num_layers; ++i) {
    auto& [weights, shape, cache] = layers[i];
    shape = check_cache(rows, k_caches[i], v_caches[i], block_tables, positions, batch_id_per_token, q_heads, kv_heads);
    check_shape(cos_sin, "cos_sin", kFloat, {kAnySize, shape.head_dim});
    cache = kv_cache(k_caches[i], v_caches[i]);
    const int64_t qkv_size = (q_heads + 2 * kv_heads) * shape.head_dim;
    weights.hidden = size;
    weights.inner = inputs_of(down[i], "down");
    weights.qkv = linear_weight(qkv[i], "qkv", qkv_size, size);
    weights.qkv_bias = vector_data(qkv_bias, "qkv_bias", i, qkv_size);
    weights.q_norm = vector_data(q_norm, "q_norm", i, shape.head_dim);
    weights.k_norm = vector_data(k_norm, "k_norm", i, shape.head_dim);
    weights.o = linear_weight(o[i], "o", size, q_heads * shape.head_dim);
    weights.o_bias = vector_data(o_bias, "o_bias", i, size);
    weights.post_attention_norm = vector_data(post_attention_norm[i], "post_attention_norm", size);
    weights.gate_up = linear_weight(gate_up[i], "gate_up", 2 * weights.inner, size);
    weights.gate_up_bias = vector_data(gate_up_bias, "gate_up_bias", i, 2 * weights.inner);
    weights.down = linear_weight(down[i], "down", size, weights.inner);
    weights.down_bias = vector_data(down_bias, "down_bias", i, size);
    weights.next_norm = vector_data(next_norm[i], "next_norm", size);
  }

  auto out = paddle::empty({rows, size}, kFloat, residual.place());
  bireme::rms_norm_cpu(residual.data<float>(), norm, eps, rows, size, out.data<float>());
  for (const Layer& layer : layers) {
    check_fault(bireme::fused_layer_cpu(layer.weights, out.data<float>(), mutable_data<float>(residual), cos_sin.data<float>(),
                                        cos_sin.shape()[0], positions.data<int32_t>(), batch_id_per_token.data<int32_t>(),
                                        block_tables.data<int32_t>(), layer.cache, eps, scale, layer.shape, out.data<float>()));
  }
  return {out};
}

PD_BUILD_OP(bireme_fused_layers)
    .Inputs({"residual", "input_norm", "cos_sin", "positions", "batch_id_per_token", "block_tables", paddle::Vec("qkv"),
             paddle::Vec("o"), paddle::Vec("gate_up"), paddle::Vec("down"), paddle::Vec("post_attention_norm"),
             paddle::Vec("next_norm"), paddle::Optional(paddle::Vec("qkv_bias")), paddle::Optional(paddle::Vec("q_norm")),
             paddle::Optional(paddle::Vec("k_norm")), paddle::Optional(paddle::Vec("o_bias")),
             paddle::Optional(paddle::Vec("gate_up_bias")), paddle::Optional(paddle::Vec("down_bias")),
             paddle::Vec("k_caches"), paddle::Vec("v_caches")})
    .Attrs({"q_heads: int64_t", "kv_heads: int64_t", "eps: float", "scale: float"})
    .Outputs({"out", "residual_out", paddle::Vec("k_caches_out"), paddle::Vec("v_caches_out")})
    .SetInplaceMap({{"residual", "residual_out"},
                    {paddle::Vec("k_caches"), paddle::Vec("k_caches_out")},
                    {paddle::Vec("v_caches"), paddle::Vec("v_caches_out")}})
    .SetKernelFn(PD_KERNEL(FusedLayers));
