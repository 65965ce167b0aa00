// One warp's share of decode attention: tiles of keys and values on tensor cores, and the running softmax over them. They come
// to shared memory by copies in the background, which need no registers, so that many are under way at once.
#pragma once
#include "kernels/attention/cuda/attention_tile.cuh"
#include "kernels/device/cuda/mma.cuh"

namespace bireme {

constexpr int kRun = 16;  // positions that lie together in a cache block at least

// Positions that a warp takes at a time: each step has its latency whatever its size, but long heads leave room for few.
template <int kHeadDim>
constexpr int kTileOf = kHeadDim > 80 ? 16 : 32;

template <typename T, int kHeadDim>
struct Shape {
  static constexpr int kColumns = kHeadDim / 16;  // tiles of 16 elements of a head
  static constexpr int kTile = kTileOf<kHeadDim>, kRuns = kTile / kRun;
  static constexpr int kLine = kRowStride<kHeadDim>;
  static constexpr int kPartFloats = part_floats(kHeadDim);
};

// Keys and values of a tile in shared memory.
template <typename T, int kHeadDim>
struct Tile {
  using S = Shape<T, kHeadDim>;
  T keys[S::kTile * S::kLine], values[S::kTile * S::kLine];
};

// Begins to copy the lines of 16 positions, of which those from `limit` on count as zeros.
template <typename T, int kHeadDim>
__device__ inline void fetch_run(T* to, const T* from, int limit) {
  constexpr int kVecs = kHeadDim / kVec, kLine = kRowStride<kHeadDim>;
#pragma unroll
  for (int i = 0; i < kRun * kVecs / kWarp; ++i) {
    const int item = i * kWarp + threadIdx.x % kWarp, line = item / kVecs;
    copy_async(to + line * kLine + item % kVecs * kVec, from + item * kVec, line < limit);
  }
}

// Turns an 8 x 8 matrix of 16-bit elements over the warp, two neighbours of a row in a thread.
__device__ inline uint32_t transposed(uint32_t pair) {
  uint32_t turned;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
  return turned;
}

// The queries of a block as lower operands of the scores, for the whole of its context.
template <typename T, int kHeadDim, int kHalves>
struct Queries {
  using S = Shape<T, kHeadDim>;
  // Two operands of 16 lines' registers would leave too few for the sums.
  static constexpr bool kKeep = kHalves == 1;
  const T* shared;
  uint2 kept[kKeep ? S::kColumns : 1];

  __device__ explicit Queries(const T* queries) : shared(queries) {
    if constexpr (kKeep) {
#pragma unroll
      for (int n = 0; n < S::kColumns; ++n) kept[n] = read(0, n);
    }
  }
  __device__ uint2 operator()(int half, int n) const { return kKeep ? kept[n] : read(half, n); }

 private:
  __device__ uint2 read(int half, int n) const {
    const T* query = shared + (half * 8 + threadIdx.x % kWarp / 4) * S::kLine + n * 16 + threadIdx.x % 4 * 2;
    return make_uint2(*reinterpret_cast<const uint32_t*>(query), *reinterpret_cast<const uint32_t*>(query + 8));
  }
};

// The running softmax of one warp, for the query lines 2 quad and 2 quad + 1 of each half. Scores are [positions, lines], the
// weighted sum [columns, lines]: so all of a product's 8 lines may be queries, where few query heads share a key head.
template <typename T, int kHeadDim, int kHalves>
struct Attended {
  using S = Shape<T, kHeadDim>;
  float out[kHalves][S::kColumns][4];
  float best[kHalves][2], sum[kHalves][2];

  __device__ void reset() {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) best[half][i] = -INFINITY, sum[half][i] = 0;
#pragma unroll
      for (int n = 0; n < S::kColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[half][n][i] = 0;
      }
    }
  }

  using Scores = float[S::kRuns][kHalves][4];

  __device__ void scores(const Queries<T, kHeadDim, kHalves>& queries, const T* keys, Scores& score) const {
    const int lane = threadIdx.x % kWarp;
    const T* row = keys + lane % 16 * S::kLine + lane / 16 * 8;
#pragma unroll
    for (int run = 0; run < S::kRuns; ++run) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
#pragma unroll
        for (int i = 0; i < 4; ++i) score[run][half][i] = 0;
      }
    }
#pragma unroll
    for (int n = 0; n < S::kColumns; ++n) {
#pragma unroll
      for (int run = 0; run < S::kRuns; ++run) {
        uint32_t a[4];
        load_matrices(a, row + run * kRun * S::kLine + n * 16);
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
          const uint2 b = queries(half, n);
          mma<T>(score[run][half], a, b.x, b.y);
        }
      }
    }
  }

  // Line i of a half sees the first `visible[half][i]` positions of the tile.
  __device__ static void hide(Scores& score, const int (&visible)[kHalves][2]) {
    const int line = threadIdx.x % kWarp / 4;
#pragma unroll
    for (int run = 0; run < S::kRuns; ++run) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (run * kRun + line + i / 2 * 8 >= visible[half][i % 2]) score[run][half][i] = -INFINITY;
        }
      }
    }
  }

  // Turns scores into weights. The best score of a line stays where new ones exceed it by little: most tiles need no exchange
  // between lanes. What becomes of a line depends on this line alone.
  __device__ void soften(Scores& score, float scale_log2) {
    constexpr float kSlack = 6;  // weights up to 2^6
    bool fits = true;
    Scores power;
#pragma unroll
    for (int run = 0; run < S::kRuns; ++run) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          power[run][half][i] = __fmaf_rn(score[run][half][i], scale_log2, -__fmul_rn(best[half][i % 2], scale_log2));
          fits &= power[run][half][i] <= kSlack;
        }
      }
    }
    if (__any_sync(kAllLanes, !fits)) raise(score, power, scale_log2, kSlack);
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float all = 0;
#pragma unroll
        for (int run = 0; run < S::kRuns; ++run) {
          float &low = score[run][half][i], &high = score[run][half][i + 2];
          low = exp2_fast(power[run][half][i]), high = exp2_fast(power[run][half][i + 2]);
          all += low + high;
        }
        sum[half][i] += all;
      }
    }
  }

  __device__ void add(const Scores& weight, const T* values) {
    const int lane = threadIdx.x % kWarp;
    const T* row = values + (lane % 8 + lane / 16 * 8) * S::kLine + lane / 8 % 2 * 8;
    uint32_t b[S::kRuns][kHalves][2];
#pragma unroll
    for (int run = 0; run < S::kRuns; ++run) {
#pragma unroll
      for (int half = 0; half < kHalves; ++half) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          b[run][half][i] = transposed(pack_pair<T>(weight[run][half][2 * i], weight[run][half][2 * i + 1]));
        }
      }
    }
#pragma unroll
    for (int run = 0; run < S::kRuns; ++run) {
#pragma unroll
      for (int n = 0; n < S::kColumns; ++n) {
        uint32_t a[4];
        load_matrices_transposed(a, row + run * kRun * S::kLine + n * 16);
#pragma unroll
        for (int half = 0; half < kHalves; ++half) mma<T>(out[half][n], a, b[run][half][0], b[run][half][1]);
      }
    }
  }

  // The warp's result, for the other warps: sums [lines][head_dim], and best and sum of every line.
  __device__ void share(float* sums, float2* best_and_sum, int lines) const {
    const int line = threadIdx.x % kWarp / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int of = half * 8 + quad * 2 + i;
        float all = sum[half][i];
#pragma unroll
        for (int offset = 4; offset < kWarp; offset *= 2) all += __shfl_xor_sync(kAllLanes, all, offset);
        if (of >= lines) continue;
        if (line == 0) best_and_sum[of] = make_float2(best[half][i], all);
#pragma unroll
        for (int n = 0; n < S::kColumns; ++n) {
          sums[of * kHeadDim + n * 16 + line] = out[half][n][i];
          sums[of * kHeadDim + n * 16 + line + 8] = out[half][n][i + 2];
        }
      }
    }
  }

 private:
  // Raises the best score of lines that exceed it by more than the slack, and brings what was summed up to it.
  __device__ void raise(const Scores& score, Scores& power, float scale_log2, float slack) {
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float top = -INFINITY;
#pragma unroll
        for (int run = 0; run < S::kRuns; ++run) top = fmaxf(top, fmaxf(score[run][half][i], score[run][half][i + 2]));
#pragma unroll
        for (int offset = 4; offset < kWarp; offset *= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, offset));
        const float before = __fmul_rn(best[half][i], scale_log2);
        if (!(__fmaf_rn(top, scale_log2, -before) <= slack)) best[half][i] = fmaxf(best[half][i], top);
        const float base = best[half][i] == -INFINITY ? 0.0f : __fmul_rn(best[half][i], scale_log2);
        // Rounded before the difference: exactly 1 where nothing changes.
        const float rescale = exp2_fast(__fsub_rn(before, base));
        sum[half][i] *= rescale;
#pragma unroll
        for (int n = 0; n < S::kColumns; ++n) out[half][n][i] *= rescale, out[half][n][i + 2] *= rescale;
#pragma unroll
        for (int run = 0; run < S::kRuns; ++run) {
          power[run][half][i] = __fmaf_rn(score[run][half][i], scale_log2, -base);
          power[run][half][i + 2] = __fmaf_rn(score[run][half][i + 2], scale_log2, -base);
        }
      }
    }
  }
};

}  // namespace bireme
