// One warp's share of a chunk's attention: 16 * kTiles query rows against tiles of 64 cache positions, on tensor cores, with a
// running softmax.
#pragma once
#include "kernels/device/cuda/async_copy.cuh"
#include "kernels/attention/cuda/attention_launch.cuh"
#include "kernels/device/cuda/mma.cuh"

namespace bireme {

constexpr int kTileKeys = 64;

__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)) : "memory");
}

__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row)) : "memory");
}

// Rows in shared memory are padded by 16 bytes, so that eight of them lie in different banks.
template <int kHeadDim>
constexpr int kRowStride = kHeadDim + kVec;

// Where a slot's keys and values lie.
template <typename T>
struct PagedCache {
  const T *k, *v;
  const int32_t* table;  // of the slot
  int table_width, blocks, block_shift, kv_heads, kv_head;  // a block holds 1 << block_shift positions
  int length;                                               // positions [0, length) may be read

  // Of position `first`'s key, or -1 where it may not be read.
  template <int kHeadDim>
  __device__ int64_t offset(int first) const {
    const int index = first >> block_shift;
    if (first >= length || index >= table_width) return -1;
    const int block = table[index], entry = first & ((1 << block_shift) - 1);
    if (block < 0 || block >= blocks) return -1;
    return (((int64_t{block} * kv_heads + kv_head) << block_shift) + entry) * kHeadDim;
  }
};

// Brings keys and values of positions [first, first + 64) to shared memory, zeros beyond the length. Each of `kWarps` warps
// brings its own part of the positions.
template <typename T, int kHeadDim, int kWarps>
__device__ inline void load_tile(const PagedCache<T>& cache, int first, T* k_tile, T* v_tile, int warp) {
  // Blocks hold a multiple of 16 positions, so that 16 of them lie in one piece.
  constexpr int kKeys = kTileKeys / kWarps, kRun = 16, kChunks = kHeadDim / kVec;
  const int lane = threadIdx.x % kWarp, start = first + warp * kKeys;
  // Lane r looks up run r.
  const int64_t offset = lane < kKeys / kRun ? cache.template offset<kHeadDim>(start + lane * kRun) : -1;
#pragma unroll
  for (int run = 0; run < kKeys / kRun; ++run) {
    const int64_t from = __shfl_sync(kAllLanes, offset, run);
    const int left = from < 0 ? 0 : cache.length - start - run * kRun;
    const T* k = cache.k + (from < 0 ? 0 : from);
    const T* v = cache.v + (from < 0 ? 0 : from);
#pragma unroll
    for (int i = 0; i < kRun * kChunks / kWarp; ++i) {
      const int item = i * kWarp + lane, key = item / kChunks, column = item % kChunks * kVec;
      const int to = (warp * kKeys + run * kRun + key) * kRowStride<kHeadDim> + column;
      const int source = key < left ? item * kVec : 0;
      copy_async(k_tile + to, k + source, key < left);
      copy_async(v_tile + to, v + source, key < left);
    }
  }
}

template <typename T, int kHeadDim, int kTiles>
struct RowState {
  static constexpr int kColumns = kHeadDim / 8;
  float out[kTiles][kColumns][4];
  float best[kTiles][2], sum[kTiles][2];  // largest score and, of this thread's columns, sum of weights
  int position[kTiles][2];                // of the row's token, -1 for a row without one

  __device__ void reset() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        best[t][half] = -INFINITY;
        sum[t][half] = 0;
      }
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[t][n][i] = 0;
      }
    }
  }

  __device__ int last_position() const {
    int last = -1;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) last = max(last, max(position[t][0], position[t][1]));
    for (int offset = 4; offset < kWarp; offset *= 2) last = max(last, __shfl_xor_sync(kAllLanes, last, offset));
    return last;
  }

  __device__ int first_position() const {
    int first = position[0][0];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) first = min(first, min(position[t][0], position[t][1]));
    for (int offset = 4; offset < kWarp; offset *= 2) first = min(first, __shfl_xor_sync(kAllLanes, first, offset));
    return first;
  }

  // One tile whose first key is position `first`. query(t, step, a) gives the fragment of head dimensions [16 step, 16 step + 16).
  // `masked`: some row must not see all of the tile.
  template <typename Query>
  __device__ void add_tile(const T* k_tile, const T* v_tile, int first, bool masked, float scale_log2, const Query& query) {
    constexpr int kStride = kRowStride<kHeadDim>;
    const int lane = threadIdx.x % kWarp, matrix = lane / 8, line = lane % 8;
    float score[kTiles][kTileKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      uint32_t a[kTiles][4];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) query(t, step, a[t]);
#pragma unroll
      for (int n = 0; n < kTileKeys / 16; ++n) {
        uint32_t b[4];
        load_matrices(b, k_tile + (n * 16 + matrix / 2 * 8 + line) * kStride + step * 16 + matrix % 2 * 8);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          mma<T>(score[t][2 * n], a[t], b[0], b[1]);
          mma<T>(score[t][2 * n + 1], a[t], b[2], b[3]);
        }
      }
    }
    uint32_t weight[kTiles][kTileKeys / 16][4];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if (masked) {
#pragma unroll
        for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            if (first + n * 8 + lane % 4 * 2 + i % 2 > position[t][i / 2]) score[t][n][i] = -INFINITY;
          }
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float top = best[t][half];
#pragma unroll
        for (int n = 0; n < kTileKeys / 8; ++n) top = fmaxf(top, fmaxf(score[t][n][2 * half], score[t][n][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
        // A row that has seen no key keeps weights of zero.
        const float base = top == -INFINITY ? 0.0f : __fmul_rn(top, scale_log2);
        // Rounded before the difference: exactly 1 where the tile brought nothing better.
        const float rescale = exp2_fast(__fsub_rn(__fmul_rn(best[t][half], scale_log2), base));
        best[t][half] = top;
        float total = 0;
#pragma unroll
        for (int n = 0; n < kTileKeys / 8; ++n) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float& s = score[t][n][2 * half + i];
            s = exp2_fast(fmaf(s, scale_log2, -base));
            total += s;
          }
        }
        sum[t][half] = fmaf(sum[t][half], rescale, total);
#pragma unroll
        for (int n = 0; n < kColumns; ++n) {
          out[t][n][2 * half] *= rescale;
          out[t][n][2 * half + 1] *= rescale;
        }
      }
#pragma unroll
      for (int n = 0; n < kTileKeys / 16; ++n) {
        weight[t][n][0] = pack_pair<T>(score[t][2 * n][0], score[t][2 * n][1]);
        weight[t][n][1] = pack_pair<T>(score[t][2 * n][2], score[t][2 * n][3]);
        weight[t][n][2] = pack_pair<T>(score[t][2 * n + 1][0], score[t][2 * n + 1][1]);
        weight[t][n][3] = pack_pair<T>(score[t][2 * n + 1][2], score[t][2 * n + 1][3]);
      }
    }
#pragma unroll
    for (int step = 0; step < kTileKeys / 16; ++step) {
#pragma unroll
      for (int n = 0; n < kHeadDim / 16; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b, v_tile + (step * 16 + matrix % 2 * 8 + line) * kStride + n * 16 + matrix / 2 * 8);
#pragma unroll
        for (int t = 0; t < kTiles; ++t) {
          mma<T>(out[t][2 * n], weight[t][step], b[0], b[1]);
          mma<T>(out[t][2 * n + 1], weight[t][step], b[2], b[3]);
        }
      }
    }
  }

  // Sums of weights over the whole row, in every thread of it.
  __device__ void finish_sums() {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sum[t][half] += __shfl_xor_sync(kAllLanes, sum[t][half], 1);
        sum[t][half] += __shfl_xor_sync(kAllLanes, sum[t][half], 2);
      }
    }
  }
};

}  // namespace bireme
