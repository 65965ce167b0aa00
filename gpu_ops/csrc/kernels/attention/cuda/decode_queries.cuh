// The queries of a decode block come to shared memory: turned on the way, and with them the newest key and value to the cache.
#pragma once
#include "kernels/attention/cuda/decode_share.cuh"
#include "kernels/attention/cuda/rotary.cuh"

namespace bireme {

// Where the key or value of position `first` lies, a multiple of 16, in the caches; negative where nothing may be read.
__device__ inline int64_t offset_of(const Launch& launch, const int32_t* table, int kv_head, int first) {
  const CudaRows& s = launch.rows;
  const int index = first >> launch.block_shift;
  const int block = index < s.table_width ? table[index] : -1;
  if (block < 0 || block >= s.blocks) return -1;
  const int entry = first & (s.block_size - 1);
  return (((int64_t{block} * s.kv_heads + kv_head) << launch.block_shift) + entry) * s.head_dim;
}

// Brings the block's queries to shared memory. With `cos_sin` the entry is one row, whose queries are turned on the way, and
// the block that `writes` its key head puts key and value into the cache and into `newest`.
template <typename T, int kHeadDim, int kLines>
__device__ void prepare_queries(const Launch& launch, const Entry& entry, int kv_head, bool writes, T* queries,
                                T (*newest)[kHeadDim]) {
  constexpr int kLine = Shape<T, kHeadDim>::kLine, kVecs = kHeadDim / kVec, kTurns = kVecs / 2;
  const CudaRows& s = launch.rows;
  const int group = s.q_heads / s.kv_heads, heads = s.q_heads + 2 * s.kv_heads;
  const T* qkv = static_cast<const T*>(launch.attention.qkv) + int64_t{entry.row} * heads * kHeadDim;
  if (!launch.attention.cos_sin) {
    for (int item = threadIdx.x; item < kLines * kVecs; item += blockDim.x) {
      const int line = item / kVecs, column = item % kVecs * kVec, token = line / group;
      const bool present = token < entry.num_rows;
      const T* from = qkv + (int64_t{token} * heads + kv_head * group + line % group) * kHeadDim + column;
      store_vec(queries + line * kLine + column, present ? load_vec(from) : zero_vec<T>());
    }
    return;
  }
  const float* cosines = launch.attention.cos_sin + int64_t{entry.last} * kHeadDim;
  for (int item = threadIdx.x; item < kLines * kTurns; item += blockDim.x) {
    const int line = item / kTurns, column = item % kTurns * kVec;
    Vec8<T> first = zero_vec<T>(), second = zero_vec<T>();
    if (line < group) turn(qkv + (kv_head * group + line) * kHeadDim, column, kHeadDim / 2, cosines, first, second);
    store_vec(queries + line * kLine + column, first);
    store_vec(queries + line * kLine + column + kHeadDim / 2, second);
  }
  if (!writes) return;
  const int32_t* table = s.block_tables + int64_t{entry.slot} * s.table_width;
  const int inside = entry.last % kRun;
  const int64_t run = offset_of(launch, table, kv_head, entry.last - inside), offset = run + inside * kHeadDim;
  const bool has_place = run >= 0;
  T* key = static_cast<T*>(launch.attention.k_cache) + offset;
  T* value = static_cast<T*>(launch.attention.v_cache) + offset;
  // The last warps, which have the fewest queries to turn.
  const int item = blockDim.x - 1 - static_cast<int>(threadIdx.x);
  if (item < kTurns) {
    const int column = item * kVec;
    Vec8<T> first, second;
    turn(qkv + (s.q_heads + kv_head) * kHeadDim, column, kHeadDim / 2, cosines, first, second);
    store_vec(newest[0] + column, has_place ? first : zero_vec<T>());
    store_vec(newest[0] + column + kHeadDim / 2, has_place ? second : zero_vec<T>());
    if (!has_place) return;
    store_vec(key + column, first);
    store_vec(key + column + kHeadDim / 2, second);
  } else if (item < kTurns + kVecs) {
    const int column = (item - kTurns) * kVec;
    const Vec8<T> vec = load_vec(qkv + (s.q_heads + s.kv_heads + kv_head) * kHeadDim + column);
    store_vec(newest[1] + column, has_place ? vec : zero_vec<T>());
    if (has_place) store_vec(value + column, vec);
  }
}

}  // namespace bireme
