// One warp's share of decode attention: keys and values of 16 positions in the registers of the tensor cores, and the running
// softmax over them. No detour through shared memory, so that many loads are under way at once.
#pragma once
#include "attention_launch.cuh"
#include "mma.cuh"

namespace bireme {

constexpr int kTile = 16;  // positions that a warp takes at a time; a cache block holds a multiple of it

template <typename T, int kHeadDim>
struct Shape {
  static constexpr int kSpans = kHeadDim / 32;           // 16-byte loads of a key's line
  static constexpr bool kHalfSpan = kHeadDim % 32 != 0;  // and one of 8 bytes
  static constexpr int kSets = kHeadDim / 64;            // 16-byte loads of a value
  static constexpr int kRest = kHeadDim % 64 / 8;        // elements of a value's last, shorter load
  static constexpr int kColumns = kHeadDim / 16;         // tiles of 16 output columns
  static constexpr int kQueryStride = kHeadDim + kVec;
  static constexpr int kPartFloats = part_floats(kHeadDim);

  // Column of a thread's element `i`, 0 or 1, of output tile n: those of line 0, 1, ... lie as its values were loaded.
  __device__ static int column(int n, int i) {
    const int line = threadIdx.x % kWarp / 4, set = n / 4;
    return set < kSets ? set * 64 + line * 8 + n % 4 * 2 + i : kSets * 64 + line * kRest + n % 4 * 2 + i;
  }
};

// Keys of positions line and line + 8 of a tile: the upper operand of the scores.
template <typename T, int kHeadDim>
struct Keys {
  using S = Shape<T, kHeadDim>;
  uint4 span[2][S::kSpans];
  uint2 half_span[2];

  __device__ void load(const T* tile, int limit) {
    const int line = threadIdx.x % kWarp / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int key = line + t * 8;
      const T* from = tile + key * kHeadDim;
      const bool present = key < limit;
#pragma unroll
      for (int i = 0; i < S::kSpans; ++i) {
        span[t][i] = present ? *reinterpret_cast<const uint4*>(from + i * 32 + quad * 8) : make_uint4(0, 0, 0, 0);
      }
      if (S::kHalfSpan) {
        half_span[t] = present ? *reinterpret_cast<const uint2*>(from + S::kSpans * 32 + quad * 4) : make_uint2(0, 0);
      }
    }
  }
};

// Values of positions 2 quad, 2 quad + 1, and the same + 8.
template <typename T, int kHeadDim>
struct Values {
  using S = Shape<T, kHeadDim>;
  uint32_t word[4][S::kColumns];  // two columns a word

  __device__ void load(const T* tile, int limit) {
    const int line = threadIdx.x % kWarp / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = quad * 2 + i % 2 + i / 2 * 8;
      const T* from = tile + key * kHeadDim;
      const bool present = key < limit;
#pragma unroll
      for (int s = 0; s < S::kSets; ++s) {
        const uint4 four = present ? *reinterpret_cast<const uint4*>(from + s * 64 + line * 8) : make_uint4(0, 0, 0, 0);
        word[i][s * 4] = four.x, word[i][s * 4 + 1] = four.y, word[i][s * 4 + 2] = four.z, word[i][s * 4 + 3] = four.w;
      }
#pragma unroll
      for (int r = 0; r < S::kRest / 2; ++r) {
        const T* at = from + S::kSets * 64 + line * S::kRest + r * 2;
        word[i][S::kSets * 4 + r] = present ? *reinterpret_cast<const uint32_t*>(at) : 0;
      }
    }
  }
};

// Turns an 8 x 8 matrix of 16-bit elements over the warp, two neighbours of a row in a thread.
__device__ inline uint32_t transposed(uint32_t pair) {
  uint32_t turned;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
  return turned;
}

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

  __device__ void scores(const T* queries, const Keys<T, kHeadDim>& keys, float (&score)[kHalves][4]) const {
    const int line = threadIdx.x % kWarp / 4, quad = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      const T* query = queries + (half * 8 + line) * S::kQueryStride;
#pragma unroll
      for (int i = 0; i < 4; ++i) score[half][i] = 0;
#pragma unroll
      for (int i = 0; i < S::kSpans; ++i) {
        mma_32<T>(score[half], keys.span[0][i], keys.span[1][i], *reinterpret_cast<const uint4*>(query + i * 32 + quad * 8));
      }
      if (S::kHalfSpan) {
        const uint2 b = *reinterpret_cast<const uint2*>(query + S::kSpans * 32 + quad * 4);
        mma<T>(score[half], {keys.half_span[0].x, keys.half_span[1].x, keys.half_span[0].y, keys.half_span[1].y}, b.x, b.y);
      }
    }
  }

  // Turns scores into weights; line i of a half sees the first `visible[half][i]` positions of the tile.
  __device__ void soften(float (&score)[kHalves][4], const int (&visible)[kHalves][2], float scale_log2) {
    const int line = threadIdx.x % kWarp / 4;
    bool better = false;
    float rescale[kHalves][2];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float &low = score[half][i], &high = score[half][i + 2];
        if (line >= visible[half][i]) low = -INFINITY;
        if (line + 8 >= visible[half][i]) high = -INFINITY;
        float top = fmaxf(low, high);
#pragma unroll
        for (int offset = 4; offset < kWarp; offset *= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, offset));
        top = fmaxf(top, best[half][i]);
        const float base = top == -INFINITY ? 0.0f : __fmul_rn(top, scale_log2);
        // Rounded before the difference: exactly 1 where the tile brought nothing better.
        rescale[half][i] = exp2_fast(__fsub_rn(__fmul_rn(best[half][i], scale_log2), base));
        better |= top != best[half][i];
        best[half][i] = top;
        low = exp2_fast(fmaf(low, scale_log2, -base));
        high = exp2_fast(fmaf(high, scale_log2, -base));
        sum[half][i] = fmaf(sum[half][i], rescale[half][i], low + high);
      }
    }
    if (!__any_sync(kAllLanes, better)) return;
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int n = 0; n < S::kColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[half][n][i] *= rescale[half][i % 2];
      }
    }
  }

  __device__ void add(const float (&weight)[kHalves][4], const Values<T, kHeadDim>& values) {
    uint32_t b[kHalves][2];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      b[half][0] = transposed(pack_pair<T>(weight[half][0], weight[half][1]));
      b[half][1] = transposed(pack_pair<T>(weight[half][2], weight[half][3]));
    }
#pragma unroll
    for (int n = 0; n < S::kColumns; ++n) {
      constexpr unsigned kFirst = 0x5410, kSecond = 0x7632;  // of a word's two columns
      const uint32_t a[4] = {__byte_perm(values.word[0][n], values.word[1][n], kFirst),
                             __byte_perm(values.word[0][n], values.word[1][n], kSecond),
                             __byte_perm(values.word[2][n], values.word[3][n], kFirst),
                             __byte_perm(values.word[2][n], values.word[3][n], kSecond)};
#pragma unroll
      for (int half = 0; half < kHalves; ++half) mma<T>(out[half][n], a, b[half][0], b[half][1]);
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
          *reinterpret_cast<float2*>(sums + of * kHeadDim + S::column(n, 0)) = make_float2(out[half][n][i], out[half][n][i + 2]);
        }
      }
    }
  }
};

}  // namespace bireme
