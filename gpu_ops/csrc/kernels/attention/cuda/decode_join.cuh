// Results of the parts of a context, joined in order: those of a block's warps, of a row's parts.
#pragma once
#include "kernels/attention/cuda/decode_share.cuh"

namespace bireme {

// The join of the parts so far, for four columns of a line.
struct Joined {
  float best = -INFINITY, sum = 0;
  float4 out = {0, 0, 0, 0};

  __device__ void add(float2 best_and_sum, float4 part, float scale_log2) {
    const Join join = Join::of(best, best_and_sum.x, scale_log2);
    best = fmaxf(best, best_and_sum.x);
    sum = join(sum, best_and_sum.y);
    out = make_float4(join(out.x, part.x), join(out.y, part.y), join(out.z, part.z), join(out.w, part.w));
  }
};

// Joins partial results number 0 to count - 1, of which `kAhead` are read at once. read(i, offset) gives the float4 that lies
// `offset` floats into number i: of the weighted sum at `column`, or the best score and the sum of weights behind it.
template <int kHeadDim, int kAhead, typename Read>
__device__ inline Joined join_partials(int count, int column, float scale_log2, const Read& read) {
  Joined all;
  for (int start = 0; start < count; start += kAhead) {
    float4 best_and_sum[kAhead], part[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int i = min(start + j, count - 1);
      best_and_sum[j] = read(i, kHeadDim), part[j] = read(i, column);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (start + j < count) all.add(make_float2(best_and_sum[j].x, best_and_sum[j].y), part[j], scale_log2);
    }
  }
  return all;
}

// Writes four columns of a partial result.
template <int kHeadDim>
__device__ inline void store_partial(float* partial, int column, const Joined& joined) {
  *reinterpret_cast<float4*>(partial + column) = joined.out;
  if (column == 0) *reinterpret_cast<float4*>(partial + kHeadDim) = make_float4(joined.best, joined.sum, 0, 0);
}

// Where a line's results go.
struct Line {
  int64_t head;  // of all rows' query heads
  bool present;

  __device__ static Line of(const Launch& launch, const Entry& entry, int kv_head, int line) {
    const int group = launch.rows.q_heads / launch.rows.kv_heads;
    const int row = line / group;
    return {(int64_t{entry.row} + row) * launch.rows.q_heads + kv_head * group + line % group, row < entry.num_rows};
  }
};

template <typename T>
__device__ inline void store_line(T* out, const Joined& line) {
  const float divisor = line.sum > 0 ? line.sum : 1;
  const float4 value = line.out;
  uint2 packed = {pack_pair<T>(value.x / divisor, value.y / divisor), pack_pair<T>(value.z / divisor, value.w / divisor)};
  *reinterpret_cast<uint2*>(out) = packed;
}

// Partial results of a query head: a place a row where rows share entries, else a place an entry, so that a step of long
// prompts takes no more than its slots need.
template <int kPartFloats>
__device__ inline float* partials_of(const Launch& launch, const Share& share, int kv_head, int line, const Line& to) {
  const int64_t of_entry = (int64_t{share.index} * launch.rows.kv_heads + kv_head) * launch.lines + line;
  return launch.attention.partials + (launch.tiled ? to.head : of_entry) * launch.max_parts * kPartFloats;
}

}  // namespace bireme
