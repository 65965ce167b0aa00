// One decoder block on the GPU as a single call over the other kernels: their launches without a host's work between them.
#pragma once
#include "kernels/attention/cuda/attention.h"

namespace bireme {

struct CudaWeight {
  const void *weight, *bias;  // [out_features, in_features]; [out_features] or null
};

// q_norm and k_norm [head_dim] may be null.
struct CudaFusedLayer {
  CudaWeight qkv, o, gate_up, down;
  const void *q_norm, *k_norm;
  const void* post_attention_norm;
  const void* next_norm;  // what the following block, or the head, norms its input with
  void *k_cache, *v_cache;
};

// What all blocks of a step share.
struct CudaFusedStep {
  Half type;
  CudaRows rows;
  const int32_t* cu_seqlens_q;  // these three as in CudaAttention; with at most one row a slot all rows decode
  int max_rows_per_slot;
  bool batch_invariant;
  const float* cos_sin;  // [max_positions, head_dim]
  int max_positions;
  int64_t hidden_size, inner_size;
  float eps, scale;
  // hidden [rows, hidden_size]: normed for the block, and by it for the next one. residual, likewise, grows in place.
  void *hidden, *residual;
  // Scratch: fused_layer_bytes(...), [rows, hidden_size], and fused_layer_partials(...) floats.
  void *wide, *projected;
  float* partials;
};

// Bytes of `wide`.
int64_t fused_layer_bytes(const CudaFusedStep& step);

// Floats of `partials`, which is not looked at.
int64_t fused_layer_partials(const CudaFusedStep& step);

// Keys and values of the rows enter the cache. The bits are those of the single kernels.
void fused_layer_cuda(const CudaFusedLayer& layer, const CudaFusedStep& step, Stream stream);

}  // namespace bireme
