// One decoder block as a single call over the other kernels: no Paddle headers.
#pragma once
#include <cstdint>

#include "kernels/attention/attention.h"
#include "kernels/quantised/linear_weight.h"

namespace bireme {

// Biases, q_norm and k_norm may be null.
struct FusedLayerWeights {
  LinearWeight qkv, o, gate_up, down;
  const float *qkv_bias, *q_norm, *k_norm, *o_bias, *gate_up_bias, *down_bias;
  const float* post_attention_norm;
  const float* next_norm;  // what the following block, or the head, norms its input with
  int64_t hidden, inner;
};

// hidden [rows, hidden size], normed -> out, likewise, normed for the next block, which may be hidden; residual [rows, hidden size]
// grows by attention and feed-forward in place. Keys and values of the rows enter the cache. On a fault out is not written.
RowFault fused_layer_cpu(const FusedLayerWeights& weights, const float* hidden, float* residual, const float* cos_sin,
                         int64_t max_positions, const int32_t* positions, const int32_t* batch_ids,
                         const int32_t* block_tables, const KvCache& cache, float eps, float scale,
                         const AttentionShape& shape, float* out);

}  // namespace bireme
