// Walking over one row of logits with a whole block, and finding an order statistic of it without sorting.
//
// Distances below the best logit are at least 0, so their bit patterns have the order of the values. A histogram, with bins of
// 1 / 64 near the best logit and coarser ones far away, finds the bin in which a running count or weight reaches its target; the few tokens in it are ranked in shared memory.
// Only rows with very many near-equal logits overflow that list; they fall back to bisecting bit patterns over the whole row.
#pragma once
#include "kernels/device/cuda/common.cuh"

namespace bireme {

constexpr int kRowThreads = 1024;
constexpr int kFineBins = 1024;             // of 1 / 64 each, up to a distance of 16
constexpr int kBins = kFineBins + 512 + 1;  // then 64 an octave up to 4096; beyond, in the last bin
constexpr int kListed = 2048;

// f(index, value) for every element; all threads of the block take part, and the walk has several loads in flight.
template <typename F>
__device__ inline void for_each_logit(const float* row, int vocab, F&& f) {
  // A row starts at a multiple of 16 bytes only if the rows before it end there.
  const int head = min(vocab, static_cast<int>((16 - reinterpret_cast<uintptr_t>(row) % 16) % 16 / 4));
  const int vecs = (vocab - head) / 4;
  if (threadIdx.x < head) f(static_cast<int>(threadIdx.x), row[threadIdx.x]);
  const float4* body = reinterpret_cast<const float4*>(row + head);
#pragma unroll 4
  for (int v = threadIdx.x; v < vecs; v += kRowThreads) {
    const float4 value = body[v];
    const int i = head + v * 4;
    f(i, value.x);
    f(i + 1, value.y);
    f(i + 2, value.z);
    f(i + 3, value.w);
  }
  const int tail = head + vecs * 4 + threadIdx.x;
  if (tail < vocab) f(tail, row[tail]);
}

// A value and its index as one number whose order is: larger value first, lower index first among equals. NaN comes last.
__device__ inline uint64_t order_key(float value, int index) {
  uint32_t bits = __float_as_uint(value == value ? value : -INFINITY);
  if (value == 0) bits = 0;  // -0 equals 0
  bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t{bits} << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}
__device__ inline int key_index(uint64_t key) { return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key)); }
__device__ inline float key_value(uint64_t key) {
  const uint32_t bits = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// Reductions over the block, exact whatever the order; the result reaches every thread. `scratch` holds 32.
template <typename V, typename Op>
__device__ inline V block_reduce(V value, V* scratch, Op op) {
  for (int offset = kWarp / 2; offset; offset /= 2) value = op(value, __shfl_xor_sync(kAllLanes, value, offset));
  __syncthreads();
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  value = scratch[threadIdx.x % kWarp];
  for (int offset = kWarp / 2; offset; offset /= 2) value = op(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}
__device__ inline uint64_t block_max(uint64_t value, uint64_t* scratch) {
  return block_reduce(value, scratch, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
}
__device__ inline uint64_t block_total(uint64_t value, uint64_t* scratch) {
  return block_reduce(value, scratch, [](uint64_t a, uint64_t b) { return a + b; });
}

// Inclusive prefix sum over the block; `total` is that of the block.
__device__ inline uint64_t block_prefix(uint64_t value, uint64_t* scratch, uint64_t* total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const uint64_t sum = warp_prefix(value);
  __syncthreads();
  if (lane == kWarp - 1) scratch[warp] = sum;
  __syncthreads();
  const uint64_t of_warps = warp_prefix(scratch[lane]);
  const uint64_t before = __shfl_sync(kAllLanes, of_warps, max(warp - 1, 0));
  *total = __shfl_sync(kAllLanes, of_warps, kWarp - 1);
  return sum + (warp ? before : 0);
}

// The key of the largest value above -inf, 0 if there is none; NaN is passed over, and told by `nan`.
__device__ inline uint64_t row_best(const float* row, int vocab, uint64_t* scratch, bool* nan) {
  float best = -INFINITY;
  int index = -1;
  bool any_nan = false;
  // A thread meets its elements in ascending order, so the first of equals stays.
  for_each_logit(row, vocab, [&](int i, float value) {
    if (value > best) {
      best = value;
      index = i;
    }
    any_nan |= value != value;
  });
  *nan = __syncthreads_or(any_nan);
  return block_max(index >= 0 ? order_key(best, index) : 0, scratch);
}

struct RowScratch {
  uint64_t reduce[kWarp];
  uint64_t sums[kBins];
  uint64_t list[kListed];   // distance bits above, index below
  uint64_t amount[kListed];  // of the listed tokens
  uint64_t found, found_before;
  int found_bin, listed;
};

__device__ inline int bin_of(float distance) {
  if (distance < 16.0f) return static_cast<int>(distance * 64);
  return min(kFineBins + static_cast<int>((__float_as_uint(distance) - __float_as_uint(16.0f)) >> 17), kBins - 1);
}

// Adds to a number in shared memory through its halves: 32-bit additions are native there, wider ones loop.
__device__ inline void add_shared(uint64_t* number, uint64_t amount) {
  uint32_t* halves = reinterpret_cast<uint32_t*>(number);
  const uint32_t low = static_cast<uint32_t>(amount), before = atomicAdd(halves, low);
  const uint32_t high = static_cast<uint32_t>(amount >> 32) + (before + low < low);
  if (high) atomicAdd(halves + 1, high);
}

// The place in the order (distance, index) at which a running sum reaches a target: (distance bits << 32 | index) of the last
// token that is needed. `amount_of(index, value, distance)` is what a token adds, `visit` walks over the row, and the sum over
// all tokens must be at least `target`, which must be at least 1.
struct Place {
  uint64_t key;
  __device__ float distance() const { return __uint_as_float(static_cast<uint32_t>(key >> 32)); }
};

template <typename Distance, typename Amount>
__device__ Place find_place(const float* row, int vocab, uint64_t target, RowScratch* s, const Distance& distance_of,
                            const Amount& amount_of) {
  for (int i = threadIdx.x; i < kBins; i += kRowThreads) s->sums[i] = 0;
  if (threadIdx.x == 0) {
    s->listed = 0;
    s->found = ~uint64_t{0};
  }
  __syncthreads();
  uint64_t far = 0;  // the last bin may be that of nearly all tokens
  for_each_logit(row, vocab, [&](int i, float value) {
    const float distance = distance_of(value);
    const uint64_t amount = amount_of(i, distance);
    if (!amount) return;
    const int bin = bin_of(distance);
    if (bin == kBins - 1) far += amount; else add_shared(&s->sums[bin], amount);
  });
  far = block_total(far, s->reduce);
  if (threadIdx.x == 0) s->sums[kBins - 1] = far;
  __syncthreads();
  // The first bin at whose end the sum reaches the target.
  uint64_t before = 0, total = 0;
  for (int start = 0; start < kBins; start += kRowThreads) {
    const int bin = start + threadIdx.x;
    const uint64_t own = bin < kBins ? s->sums[bin] : 0, end = before + block_prefix(own, s->reduce, &total);
    if (bin < kBins && end >= target && end - own < target) {
      s->found_bin = bin;
      s->found_before = end - own;
    }
    before += total;
  }
  __syncthreads();
  const int bin = s->found_bin;
  const uint64_t below = s->found_before;
  for_each_logit(row, vocab, [&](int i, float value) {
    const float distance = distance_of(value);
    const uint64_t amount = amount_of(i, distance);
    if (!amount || bin_of(distance) != bin) return;
    const int at = atomicAdd(&s->listed, 1);
    if (at >= kListed) return;
    s->list[at] = uint64_t{__float_as_uint(distance)} << 32 | static_cast<uint32_t>(i);
    s->amount[at] = amount;
  });
  __syncthreads();
  const int listed = s->listed;
  if (listed <= kListed) {
    for (int a = threadIdx.x; a < listed; a += kRowThreads) {
      const uint64_t key = s->list[a];
      uint64_t sum = below;
      for (int b = 0; b < listed; ++b) sum += s->list[b] < key ? s->amount[b] : 0;
      if (sum < target && sum + s->amount[a] >= target) s->found = key;
    }
    __syncthreads();
    return {s->found};
  }
  // Too many to list: bisect the whole key, distance first, then index.
  uint64_t low = 0, high = ~uint64_t{0} >> 1;
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    uint64_t sum = 0;
    for_each_logit(row, vocab, [&](int i, float value) {
      const float distance = distance_of(value);
      const uint64_t key = uint64_t{__float_as_uint(distance)} << 32 | static_cast<uint32_t>(i);
      if (key <= middle) sum += amount_of(i, distance);
    });
    if (block_total(sum, s->reduce) >= target) high = middle; else low = middle + 1;
  }
  return {high};
}

}  // namespace bireme
