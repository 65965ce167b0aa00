// fused_layers on the GPU.
#pragma once
#include "kernels/layers/cuda/fused_layer.h"
#include "kernels/layers/cuda/layers.h"
#include "bindings/cuda_attention_checks.h"
#include "bindings/layer_tensors.h"

namespace cuda_fused_layers {

// Its data, of the residual stream's type and place.
inline const void* data(const paddle::Tensor& tensor, const char* name, const StepTensors& step,
                        std::initializer_list<int64_t> sizes) {
  check_shape(tensor, name, step.residual.dtype(), sizes);
  check_same_place(step.residual, "residual", tensor, name);
  return tensor.data();
}

// Of layer `index`; null where there is none.
inline const void* data(const OptionalTensors& tensors, const char* name, size_t index, const StepTensors& step, int64_t size) {
  return tensors ? data((*tensors)[index], name, step, {size}) : nullptr;
}

}  // namespace cuda_fused_layers

// All is checked before anything is enqueued.
inline std::vector<paddle::Tensor> fused_layers_gpu(const StepTensors& s, const LayerTensors& l) {
  using namespace cuda_fused_layers;
  const paddle::DataType dtype = float_type(s.residual, "residual");
  check_shape(s.residual, "residual", dtype, {kAnySize, kAnySize});
  check_not_empty(s.residual, "residual");
  const int64_t rows = s.residual.shape()[0], size = s.residual.shape()[1];
  check_gpu_columns(size, "residual");
  const void* input_norm = data(s.input_norm, "input_norm", s, {size});
  PD_CHECK(s.max_rows_per_slot >= 1, "max_rows_per_slot: is ", s.max_rows_per_slot, ", needs to be at least 1");

  std::vector<bireme::CudaFusedLayer> layers(l.count());
  bireme::CudaFusedStep step{};
  for (size_t i = 0; i < layers.size(); ++i) {
    bireme::CudaFusedLayer& layer = layers[i];
    const auto in_rows = check_cuda_cache(rows, dtype, l.k_caches[i], l.v_caches[i], s.block_tables, s.positions, s.batch_id_per_token,
                                          s.q_heads, s.kv_heads);
    check_same_place(s.residual, "residual", l.k_caches[i], "k_cache");
    const int64_t head_dim = in_rows.head_dim, qkv_size = (s.q_heads + 2 * s.kv_heads) * head_dim;
    check_shape(l.down[i], "down", dtype, {size, kAnySize});
    const int64_t inner = l.down[i].shape()[1];
    check_gpu_columns(inner, "down");
    PD_CHECK(i == 0 || (inner == step.inner_size && head_dim == step.rows.head_dim), "down: layer ", i,
             " has another size than the first");
    PD_CHECK(i == 0 || (in_rows.blocks == step.rows.blocks && in_rows.block_size == step.rows.block_size), "k_cache: layer ", i,
             " has ", in_rows.blocks, " blocks of ", in_rows.block_size, ", needs those of the first");
    step.rows = in_rows, step.inner_size = inner;
    layer.qkv = {data(l.qkv[i], "qkv", s, {qkv_size, size}), data(l.qkv_bias, "qkv_bias", i, s, qkv_size)};
    layer.o = {data(l.o[i], "o", s, {size, s.q_heads * head_dim}), data(l.o_bias, "o_bias", i, s, size)};
    layer.gate_up = {data(l.gate_up[i], "gate_up", s, {2 * inner, size}), data(l.gate_up_bias, "gate_up_bias", i, s, 2 * inner)};
    layer.down = {data(l.down[i], "down", s, {size, inner}), data(l.down_bias, "down_bias", i, s, size)};
    layer.q_norm = data(l.q_norm, "q_norm", i, s, head_dim), layer.k_norm = data(l.k_norm, "k_norm", i, s, head_dim);
    layer.post_attention_norm = data(l.post_attention_norm[i], "post_attention_norm", s, {size});
    layer.next_norm = data(l.next_norm[i], "next_norm", s, {size});
    layer.k_cache = raw_data(l.k_caches[i]), layer.v_cache = raw_data(l.v_caches[i]);
  }
  check_shape(s.cos_sin, "cos_sin", paddle::DataType::FLOAT32, {kAnySize, step.rows.head_dim});
  check_same_place(s.residual, "residual", s.cos_sin, "cos_sin");
  if (s.cu_seqlens_q) {
    check_shape(*s.cu_seqlens_q, "cu_seqlens_q", paddle::DataType::INT32, {step.rows.slots + 1});
    check_same_place(s.residual, "residual", *s.cu_seqlens_q, "cu_seqlens_q");
    step.cu_seqlens_q = s.cu_seqlens_q->data<int32_t>();
  }
  step.type = half_of(dtype), step.max_rows_per_slot = static_cast<int>(s.max_rows_per_slot);
  step.batch_invariant = s.batch_invariant;
  step.cos_sin = s.cos_sin.data<float>(), step.max_positions = static_cast<int>(s.cos_sin.shape()[0]);
  step.hidden_size = size, step.eps = s.eps, step.scale = s.scale;

  auto out = paddle::empty({rows, size}, dtype, s.residual.place());
  step.hidden = out.data(), step.residual = raw_data(s.residual);
  if constexpr (kWithCuda) {
    auto wide = paddle::empty({bireme::fused_layer_bytes(step)}, paddle::DataType::UINT8, s.residual.place());
    auto projected = paddle::empty({rows, size}, dtype, s.residual.place());
    step.wide = wide.data(), step.projected = projected.data();
    on_device([&] {
      const auto stream = stream_of(s.residual);
      step.partials = bireme::attention_scratch(bireme::fused_layer_partials(step), stream);
      bireme::rms_norm_cuda(step.type, step.residual, input_norm, step.eps, rows, size, step.hidden, stream);
      for (const bireme::CudaFusedLayer& layer : layers) bireme::fused_layer_cuda(layer, step, stream);
    });
  }
  return {out};
}
