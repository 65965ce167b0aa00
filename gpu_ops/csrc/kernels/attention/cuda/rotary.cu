#include "kernels/attention/cuda/attention.h"
#include "kernels/device/cuda/chained_launch.cuh"
#include "kernels/attention/cuda/rotary.cuh"

namespace bireme {
namespace {

// A thread turns eight pairs of one head or copies eight elements of a value head.
template <typename T>
__global__ void rotary_kernel(T* qkv, const float* cos_sin, int max_positions, T* k_cache, T* v_cache, CudaRows s) {
  wait_for_predecessor();
  start_successor();
  const int row = blockIdx.x, item = blockIdx.y * blockDim.x + threadIdx.x;
  const int half = s.head_dim / 2, turns = half / kVec, copies = s.head_dim / kVec;
  const int turning = (s.q_heads + s.kv_heads) * turns;
  if (item >= turning + s.kv_heads * copies) return;
  const int slot = s.batch_ids[row], position = s.positions[row];
  if (slot < 0 || slot >= s.slots || position < 0 || position >= max_positions) return;
  const int index = position / s.block_size;
  const int block = index < s.table_width ? s.block_tables[int64_t{slot} * s.table_width + index] : -1;
  if (block < 0 || block >= s.blocks) return;
  const auto cache_offset = [&](int kv_head) {
    return ((int64_t{block} * s.kv_heads + kv_head) * s.block_size + position % s.block_size) * s.head_dim;
  };
  T* heads = qkv + int64_t{row} * (s.q_heads + 2 * s.kv_heads) * s.head_dim;
  if (item >= turning) {
    const int kv_head = (item - turning) / copies, column = (item - turning) % copies * kVec;
    store_vec(v_cache + cache_offset(kv_head) + column,
              load_vec(heads + int64_t{s.q_heads + s.kv_heads + kv_head} * s.head_dim + column));
    return;
  }
  const int head = item / turns, column = item % turns * kVec;
  T* from = heads + int64_t{head} * s.head_dim;
  Vec8<T> first, second;
  turn(from, column, half, cos_sin + int64_t{position} * s.head_dim, first, second);
  T* to = head < s.q_heads ? from : k_cache + cache_offset(head - s.q_heads);
  store_vec(to + column, first);
  store_vec(to + column + half, second);
}

}  // namespace

void rotary_kv_write_cuda(Half type, void* qkv, const float* cos_sin, int max_positions, void* k_cache, void* v_cache,
                          const CudaRows& rows, Stream stream) {
  constexpr int kThreads = 128;
  const int items = ((rows.q_heads + rows.kv_heads) * (rows.head_dim / 2) + rows.kv_heads * rows.head_dim) / kVec;
  const dim3 grid(rows.rows, (items + kThreads - 1) / kThreads);
  with_half(type, [&](auto t) {
    using T = decltype(t);
    launch_chained(rotary_kernel<T>, grid, kThreads, 0, stream, "rotary_kv_write", static_cast<T*>(qkv), cos_sin, max_positions,
                   static_cast<T*>(k_cache), static_cast<T*>(v_cache), rows);
  });
}

}  // namespace bireme
