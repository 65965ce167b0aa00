// Rotary embedding with cache write, and attention over the paged cache: no Paddle headers.
//
// Cache layout: k [blocks, kv_heads, head_dim, block_size], v [blocks, kv_heads, block_size, head_dim]; in int8, k has
// kKvScaleRows more rows, which are the block's scales (kv_cache.h).
// Position p of slot s lies in block block_tables[s, p / block_size], entry p % block_size.
#pragma once
#include <cstdint>

namespace bireme {

struct AttentionShape {
  int64_t rows, q_heads, kv_heads, head_dim;
  int64_t blocks, block_size;
  int64_t slots, table_width;  // block_tables is [slots, table_width]
};

enum class KvType { kFloat32, kBfloat16, kInt8 };

struct KvCache {
  KvType type;
  void *k, *v;
};

// What a row asked for and cannot have; `row` is -1 when all is well.
struct RowFault {
  int64_t row = -1;
  const char* what = nullptr;
};

// qkv [rows, (q_heads + 2 * kv_heads) * head_dim]: rotates the query heads in place, and writes the rotated key heads and the
// value heads into the cache, rounded to its type. cos_sin [max_positions, head_dim]: cosines in the first half of a row, sines in the second;
// element i turns with element i + head_dim / 2. Rows with batch_ids < 0 are skipped. On a fault nothing was written.
RowFault rotary_kv_write_cpu(float* qkv, const float* cos_sin, int64_t max_positions, const int32_t* positions,
                             const int32_t* batch_ids, const int32_t* block_tables, const KvCache& cache,
                             const AttentionShape& shape);

// out [rows, q_heads * head_dim]: softmax(scale * q k) v over cache positions 0..positions[row]. Rows with batch_ids < 0 give
// zeros. A row's result depends on its own query, position and cache alone. Sums are float32 whatever the cache's type.
RowFault paged_attention_cpu(const float* qkv, const KvCache& cache, const int32_t* block_tables, const int32_t* positions,
                             const int32_t* batch_ids, float scale, const AttentionShape& shape, float* out);

}  // namespace bireme
