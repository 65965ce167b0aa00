#include "kernels/layers/fused_layer.h"

#include "kernels/layers/norm.h"
#include "kernels/device/scratch.h"

namespace bireme {

RowFault fused_layer_cpu(const FusedLayerWeights& weights, const float* hidden, float* residual, const float* cos_sin,
                         int64_t max_positions, const int32_t* positions, const int32_t* batch_ids,
                         const int32_t* block_tables, const KvCache& cache, float eps, float scale,
                         const AttentionShape& shape, float* out) {
  thread_local Scratch qkv_scratch, wide_scratch, narrow_scratch;
  const int64_t rows = shape.rows, attended_size = shape.q_heads * shape.head_dim;
  const int64_t qkv_size = (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim;

  float* qkv = qkv_scratch.get(rows * qkv_size);
  apply_linear_cpu(hidden, rows, weights.hidden, weights.qkv, qkv_size, weights.qkv_bias, qkv);
  if (weights.q_norm) {
    qk_norm_cpu(qkv, weights.q_norm, weights.k_norm, eps, rows, shape.q_heads, shape.kv_heads, shape.head_dim);
  }
  RowFault fault = rotary_kv_write_cpu(qkv, cos_sin, max_positions, positions, batch_ids, block_tables, cache, shape);
  if (fault.row >= 0) return fault;
  float* attended = narrow_scratch.get(rows * attended_size);
  fault = paged_attention_cpu(qkv, cache, block_tables, positions, batch_ids, scale, shape, attended);
  if (fault.row >= 0) return fault;
  apply_linear_cpu(attended, rows, attended_size, weights.o, weights.hidden, weights.o_bias, out);
  add_rms_norm_cpu(out, residual, weights.post_attention_norm, eps, rows, weights.hidden, out);

  float* gate_up = wide_scratch.get(rows * 2 * weights.inner);
  apply_linear_cpu(out, rows, weights.hidden, weights.gate_up, 2 * weights.inner, weights.gate_up_bias, gate_up);
  float* activated = narrow_scratch.get(rows * weights.inner);
  swiglu_cpu(gate_up, rows, weights.inner, activated);
  apply_linear_cpu(activated, rows, weights.inner, weights.down, weights.hidden, weights.down_bias, out);
  add_rms_norm_cpu(out, residual, weights.next_norm, eps, rows, weights.hidden, out);
  return {};
}

}  // namespace bireme
