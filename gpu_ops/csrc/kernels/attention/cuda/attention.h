// Rotary embedding with cache write, and attention over the paged cache, on the GPU.
//
// Cache layout: k and v [blocks, kv_heads, block_size, head_dim]. Position p of slot s lies in block
// block_tables[s, p / block_size], entry p % block_size. Nothing on the device can raise: a row whose slot or position is out of
// range has no result (zeros, but with cu_seqlens_q only rows beyond the last slot's are written), and positions of a block
// that is out of range count as keys and values of zero.
#pragma once
#include "kernels/device/cuda/device.h"

namespace bireme {

// Sizes and tables of the rows of a step.
struct CudaRows {
  int rows, q_heads, kv_heads, head_dim;
  int blocks, block_size;
  int slots, table_width;  // block_tables is [slots, table_width]
  const int32_t *positions, *batch_ids, *block_tables;
};

void rotary_kv_write_cuda(Half type, void* qkv, const float* cos_sin, int max_positions, void* k_cache, void* v_cache,
                          const CudaRows& rows, Stream stream);

struct CudaAttention {
  const void* qkv;
  void *k_cache, *v_cache;
  // [max_positions, head_dim] or null. Given, every row is a single one whose query and key are not turned yet: queries are
  // turned on the way, keys and values enter the cache.
  const float* cos_sin;
  int max_positions;
  // int32 [slots + 1], first row of each slot, or null: then every row is computed on its own, as in decoding.
  const int32_t* cu_seqlens_q;
  int max_rows_per_slot;  // with cu_seqlens_q: no slot has more rows than this
  bool batch_invariant;   // rows of a chunk sum in the order in which a single row does
  float scale;
  void* out;
  float* partials;  // attention_partials(...) floats
};

bool attention_supports(int head_dim, int q_heads, int kv_heads);

// Floats of scratch for partial results of rows that are split over their context.
// (`partials` itself is not looked at.)
int64_t attention_partials(const CudaAttention& attention, const CudaRows& rows);

// So many floats, valid on this stream until the next launch of attention takes them. Grows outside graph capture only: a launch
// is to be made once before it is captured.
float* attention_scratch(int64_t count, Stream stream);

void paged_attention_cuda(Half type, const CudaAttention& attention, const CudaRows& rows, Stream stream);

}  // namespace bireme
