#include "kernels/layers/cuda/fused_layer.h"

#include <algorithm>

#include "kernels/layers/cuda/layers.h"
#include "kernels/linear/cuda/linear.h"

namespace bireme {
namespace {

constexpr int64_t kItemBytes = 2;
// cuBLASLt chooses algorithms for arrays that begin like an allocation of their own.
constexpr int64_t kAlignment = 256;

int64_t qkv_size(const CudaRows& rows) { return int64_t{rows.q_heads + 2 * rows.kv_heads} * rows.head_dim; }
int64_t attended_size(const CudaRows& rows) { return int64_t{rows.q_heads} * rows.head_dim; }

int64_t aligned_bytes(const CudaRows& rows, int64_t size) {
  return (rows.rows * size * kItemBytes + kAlignment - 1) / kAlignment * kAlignment;
}

bool all_decode(const CudaFusedStep& step) { return step.max_rows_per_slot == 1; }

CudaAttention attention_of(const CudaFusedStep& step) {
  CudaAttention attention{};
  if (all_decode(step)) {
    attention.cos_sin = step.cos_sin, attention.max_positions = step.max_positions;
  } else {
    attention.cu_seqlens_q = step.cu_seqlens_q, attention.max_rows_per_slot = step.max_rows_per_slot;
  }
  attention.batch_invariant = step.batch_invariant, attention.scale = step.scale;
  attention.partials = step.partials;
  return attention;
}

}  // namespace

int64_t fused_layer_bytes(const CudaFusedStep& step) {
  const CudaRows& rows = step.rows;
  return std::max(aligned_bytes(rows, qkv_size(rows)) + aligned_bytes(rows, attended_size(rows)),
                  aligned_bytes(rows, 2 * step.inner_size) + aligned_bytes(rows, step.inner_size));
}

int64_t fused_layer_partials(const CudaFusedStep& step) { return attention_partials(attention_of(step), step.rows); }

void fused_layer_cuda(const CudaFusedLayer& layer, const CudaFusedStep& step, Stream stream) {
  const CudaRows& rows = step.rows;
  const auto linear = [&](const void* x, int64_t in_size, const CudaWeight& weight, int64_t out_size, void* y) {
    linear_cuda({step.type, false, step.batch_invariant, rows.rows, in_size, out_size, x, weight.weight, weight.bias, y}, stream);
  };
  const auto add_and_norm = [&](const void* norm) {
    add_rms_norm_cuda(step.type, step.projected, step.residual, norm, step.eps, rows.rows, step.hidden_size, step.hidden, stream);
  };

  void* qkv = step.wide;
  void* attended = static_cast<char*>(step.wide) + aligned_bytes(rows, qkv_size(rows));
  linear(step.hidden, step.hidden_size, layer.qkv, qkv_size(rows), qkv);
  if (layer.q_norm) {
    qk_norm_cuda(step.type, qkv, layer.q_norm, layer.k_norm, step.eps, rows.rows, rows.q_heads, rows.kv_heads, rows.head_dim,
                 stream);
  }
  if (!all_decode(step)) {
    rotary_kv_write_cuda(step.type, qkv, step.cos_sin, step.max_positions, layer.k_cache, layer.v_cache, rows, stream);
  }
  CudaAttention attention = attention_of(step);
  attention.qkv = qkv, attention.out = attended;
  attention.k_cache = layer.k_cache, attention.v_cache = layer.v_cache;
  paged_attention_cuda(step.type, attention, rows, stream);
  linear(attended, attended_size(rows), layer.o, step.hidden_size, step.projected);
  add_and_norm(layer.post_attention_norm);

  void* gate_up = step.wide;
  void* gated = static_cast<char*>(step.wide) + aligned_bytes(rows, 2 * step.inner_size);
  linear(step.hidden, step.hidden_size, layer.gate_up, 2 * step.inner_size, gate_up);
  swiglu_cuda(step.type, gate_up, rows.rows, step.inner_size, gated, stream);
  linear(gated, step.inner_size, layer.down, step.hidden_size, step.projected);
  add_and_norm(layer.next_norm);
}

}  // namespace bireme
