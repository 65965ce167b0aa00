// fused_layers: a custom-op call costs 30 to 60 us of dispatch, so a step has one for all of its layers.
#include "kernels/layers/fused_layer.h"
#include "kernels/layers/norm.h"

#include "bindings/attention_checks.h"
#include "bindings/cuda_fused_layers.h"
#include "bindings/quantised_checks.h"

namespace {
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

// layers_done: int64 [1] or none.
std::vector<paddle::Tensor> fused_layers_cpu(const StepTensors& s, const LayerTensors& l,
                                             const paddle::optional<paddle::Tensor>& layers_done) {
  const float* norm = vector_data(s.input_norm, "input_norm", kAnySize);
  const int64_t size = s.input_norm.numel();
  check_shape(s.residual, "residual", kFloat, {kAnySize, size});
  check_not_empty(s.residual, "residual");
  check_cpu(s.residual, "residual");
  const int64_t rows = s.residual.shape()[0];

  // All is checked before anything is written.
  struct Layer {
    bireme::FusedLayerWeights weights;
    bireme::AttentionShape shape;
    bireme::KvCache cache;
  };
  std::vector<Layer> layers(l.count());
  for (size_t i = 0; i < layers.size(); ++i) {
    auto& [weights, shape, cache] = layers[i];
    shape = check_cache(rows, l.k_caches[i], l.v_caches[i], s.block_tables, s.positions, s.batch_id_per_token, s.q_heads, s.kv_heads);
    check_shape(s.cos_sin, "cos_sin", kFloat, {kAnySize, shape.head_dim});
    cache = kv_cache(l.k_caches[i], l.v_caches[i]);
    const int64_t qkv_size = (s.q_heads + 2 * s.kv_heads) * shape.head_dim;
    weights.hidden = size;
    weights.inner = inputs_of(l.down[i], "down");
    weights.qkv = linear_weight(l.qkv[i], "qkv", qkv_size, size);
    weights.qkv_bias = vector_data(l.qkv_bias, "qkv_bias", i, qkv_size);
    weights.q_norm = vector_data(l.q_norm, "q_norm", i, shape.head_dim);
    weights.k_norm = vector_data(l.k_norm, "k_norm", i, shape.head_dim);
    weights.o = linear_weight(l.o[i], "o", size, s.q_heads * shape.head_dim);
    weights.o_bias = vector_data(l.o_bias, "o_bias", i, size);
    weights.post_attention_norm = vector_data(l.post_attention_norm[i], "post_attention_norm", size);
    weights.gate_up = linear_weight(l.gate_up[i], "gate_up", 2 * weights.inner, size);
    weights.gate_up_bias = vector_data(l.gate_up_bias, "gate_up_bias", i, 2 * weights.inner);
    weights.down = linear_weight(l.down[i], "down", size, weights.inner);
    weights.down_bias = vector_data(l.down_bias, "down_bias", i, size);
    weights.next_norm = vector_data(l.next_norm[i], "next_norm", size);
  }

  int64_t* done = nullptr;
  if (layers_done) {
    check_tensor(*layers_done, "layers_done", paddle::DataType::INT64, 1);
    done = mutable_data<int64_t>(*layers_done);
  }

  auto out = paddle::empty({rows, size}, kFloat, s.residual.place());
  bireme::rms_norm_cpu(s.residual.data<float>(), norm, s.eps, rows, size, out.data<float>());
  for (const Layer& layer : layers) {
    check_fault(bireme::fused_layer_cpu(layer.weights, out.data<float>(), mutable_data<float>(s.residual), s.cos_sin.data<float>(),
                                        s.cos_sin.shape()[0], s.positions.data<int32_t>(), s.batch_id_per_token.data<int32_t>(),
                                        s.block_tables.data<int32_t>(), layer.cache, s.eps, s.scale, layer.shape, out.data<float>()));
    if (done != nullptr) __atomic_fetch_add(done, 1, __ATOMIC_RELEASE);
  }
  return {out};
}
}  // namespace

std::vector<paddle::Tensor> FusedLayers(
    const paddle::Tensor& residual, const paddle::Tensor& input_norm, const paddle::Tensor& cos_sin, const paddle::Tensor& positions,
    const paddle::Tensor& batch_id_per_token, const paddle::Tensor& block_tables, const paddle::optional<paddle::Tensor>& cu_seqlens_q,
    const paddle::optional<paddle::Tensor>& layers_done, const Tensors& qkv, const Tensors& o, const Tensors& gate_up, const Tensors& down, const Tensors& post_attention_norm,
    const Tensors& next_norm, const OptionalTensors& qkv_bias, const OptionalTensors& q_norm, const OptionalTensors& k_norm,
    const OptionalTensors& o_bias, const OptionalTensors& gate_up_bias, const OptionalTensors& down_bias, const Tensors& k_caches,
    const Tensors& v_caches, int64_t q_heads, int64_t kv_heads, float eps, float scale, int64_t max_rows_per_slot,
    bool batch_invariant) {
  const LayerTensors layers{qkv,    o,      gate_up, down,         post_attention_norm, next_norm, qkv_bias,
                            q_norm, k_norm, o_bias,  gate_up_bias, down_bias,           k_caches,  v_caches};
  layers.check_counts();
  const StepTensors step{residual, input_norm, cos_sin, positions, batch_id_per_token, block_tables, cu_seqlens_q,
                         q_heads,  kv_heads,   eps,     scale,     max_rows_per_slot,  batch_invariant};
  if (residual.is_gpu()) return fused_layers_gpu(step, layers);
  return fused_layers_cpu(step, layers, layers_done);
}

PD_BUILD_OP(bireme_fused_layers)
    .Inputs({"residual", "input_norm", "cos_sin", "positions", "batch_id_per_token", "block_tables",
             paddle::Optional("cu_seqlens_q"), paddle::Optional("layers_done"), paddle::Vec("qkv"), paddle::Vec("o"), paddle::Vec("gate_up"), paddle::Vec("down"),
             paddle::Vec("post_attention_norm"), paddle::Vec("next_norm"), paddle::Optional(paddle::Vec("qkv_bias")), paddle::Optional(paddle::Vec("q_norm")),
             paddle::Optional(paddle::Vec("k_norm")), paddle::Optional(paddle::Vec("o_bias")),
             paddle::Optional(paddle::Vec("gate_up_bias")), paddle::Optional(paddle::Vec("down_bias")),
             paddle::Vec("k_caches"), paddle::Vec("v_caches")})
    .Attrs({"q_heads: int64_t", "kv_heads: int64_t", "eps: float", "scale: float", "max_rows_per_slot: int64_t",
            "batch_invariant: bool"})
    .Outputs({"out", "residual_out", paddle::Vec("k_caches_out"), paddle::Vec("v_caches_out")})
    .SetInplaceMap({{"residual", "residual_out"},
                    {paddle::Vec("k_caches"), paddle::Vec("k_caches_out")},
                    {paddle::Vec("v_caches"), paddle::Vec("v_caches_out")}})
    .SetKernelFn(PD_KERNEL(FusedLayers));
