#include "generated/kernel_limits.h"
#include "kernels/attention/attention.h"

#include <algorithm>

#include "kernels/attention/kv_cache.h"
#include "kernels/device/thread_pool.h"
#include "kernels/device/vec16.h"

namespace bireme {
namespace {

constexpr int64_t kGrainFloats = 2 * 1024;

// `to` may be `x`.
void rotate(const float* x, const float* cosine, const float* sine, int64_t half, float* to) {
  for (int64_t i = 0; i < half; i += kLanes) {
    const int lanes = static_cast<int>(std::min<int64_t>(kLanes, half - i));
    const Vec16 a = load_up_to(x + i, lanes), b = load_up_to(x + half + i, lanes);
    const Vec16 c = load_up_to(cosine + i, lanes), s = load_up_to(sine + i, lanes);
    store_up_to(to + i, fma(a, c, zero() - b * s), lanes);
    store_up_to(to + half + i, fma(b, c, a * s), lanes);
  }
}

RowFault find_fault(int64_t max_positions, const int32_t* positions, const int32_t* batch_ids, const int32_t* block_tables,
                    const AttentionShape& shape) {
  for (int64_t t = 0; t < shape.rows; ++t) {
    if (batch_ids[t] < 0) continue;
    if (batch_ids[t] >= shape.slots) return {t, "batch_id_per_token: slot beyond block_tables"};
    if (positions[t] < 0 || positions[t] >= max_positions) return {t, "positions: beyond cos_sin"};
    const int64_t index = positions[t] / shape.block_size;
    if (index >= shape.table_width) return {t, "positions: beyond block_tables"};
    const int32_t block = block_tables[batch_ids[t] * shape.table_width + index];
    if (block < 0 || block >= shape.blocks) return {t, "block_tables: no block for the position"};
  }
  return {};
}

// Rows [begin, end).
template <typename Number>
void write_rows(int64_t begin, int64_t end, float* qkv, const float* cos_sin, const int32_t* positions,
                const int32_t* batch_ids, const int32_t* block_tables, Number* k_cache, Number* v_cache,
                const AttentionShape& shape) {
  const int64_t dim = shape.head_dim, half = dim / 2, size = shape.block_size;
  const int64_t width = (shape.q_heads + 2 * shape.kv_heads) * dim;
  const KvLayout<Number> layout{dim, size};
  for (int64_t t = begin; t < end; ++t) {
    if (batch_ids[t] < 0) continue;
    const int64_t position = positions[t], entry = position % size;
    const int64_t block = block_tables[batch_ids[t] * shape.table_width + position / size];
    const float* cosine = cos_sin + position * dim;
    const float* sine = cosine + half;
    float* row = qkv + t * width;
    // What will be written comes nearer while queries turn: the numbers of a key lie a line apart.
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      const Number* keys = k_cache + (block * shape.kv_heads + head) * layout.key_numbers() + entry;
      for (int64_t d = 0; d < dim; ++d) __builtin_prefetch(keys + d * size, 1);
    }
    for (int64_t head = 0; head < shape.q_heads; ++head) rotate(row + head * dim, cosine, sine, half, row + head * dim);
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      const float* k = row + (shape.q_heads + head) * dim;
      const float* v = k + shape.kv_heads * dim;
      Number* keys = k_cache + (block * shape.kv_heads + head) * layout.key_numbers();
      Number* values = v_cache + (block * shape.kv_heads + head) * layout.value_numbers();
      float* scales = layout.scales(keys) + entry;
      float rotated[kMaxHeadDim];
      rotate(k, cosine, sine, half, rotated);
      store_vector(rotated, dim, keys + entry, size, scales);
      store_vector(v, dim, values + entry * dim, 1, scales + size);
    }
  }
}

}  // namespace

RowFault rotary_kv_write_cpu(float* qkv, const float* cos_sin, int64_t max_positions, const int32_t* positions,
                             const int32_t* batch_ids, const int32_t* block_tables, const KvCache& cache,
                             const AttentionShape& shape) {
  const RowFault fault = find_fault(max_positions, positions, batch_ids, block_tables, shape);
  if (fault.row >= 0) return fault;
  const int64_t width = (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim;
  const int64_t grain = std::max<int64_t>(1, kGrainFloats / width);
  with_kv_number(cache.type, [&](auto number) {
    using Number = decltype(number);
    parallel_for(shape.rows, grain, [&](int64_t begin, int64_t end) {
      write_rows(begin, end, qkv, cos_sin, positions, batch_ids, block_tables, static_cast<Number*>(cache.k),
                 static_cast<Number*>(cache.v), shape);
    });
  });
  return {};
}

}  // namespace bireme
