// What the attention kernels share: their argument, how results of parts are joined, and which rows a block computes.
#pragma once
#include "generated/kernel_limits.h"
#include "kernels/attention/cuda/attention.h"
#include "kernels/device/cuda/common.cuh"

namespace bireme {

struct Launch {
  CudaRows rows;
  CudaAttention attention;
  float scale_log2;  // scale * log2(e): weights are powers of two
  int block_shift;   // a cache block holds 1 << block_shift positions
  // Of decode_kernel:
  int longest;                       // positions that a block table can hold
  int step;                          // positions that a block's warps take at a time: parts are multiples of it
  int stages;                        // tiles of a warp whose copies are under way together
  int min_part, max_parts;           // positions of a part at least, parts of a context at most
  bool tiled;                        // entries are tiles of the slots' rows, otherwise single rows
  int entries, entry_rows, lines;    // entries at most; rows of one at most, and those times the query heads of a group
  int rounds;                        // shares that a block may have
  int most_parts;                    // of all contexts together, for each key head; not with batch_invariant
  int* arrivals;                     // [entries * kv_heads], zero between launches
};

// Floats of a partial result: the weighted sum, the best score and the sum of weights, in 16-byte pieces.
constexpr int part_floats(int head_dim) { return head_dim + 4; }

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Joins the result of a further part of the context to that of the parts before it.
struct Join {
  float before, part;  // factors of the two results

  __device__ static Join of(float best_before, float best_part, float scale_log2) {
    const float top = fmaxf(best_before, best_part);
    if (top == -INFINITY) return {0, 0};
    const float base = __fmul_rn(top, scale_log2);
    return {exp2_fast(__fsub_rn(__fmul_rn(best_before, scale_log2), base)),
            exp2_fast(__fsub_rn(__fmul_rn(best_part, scale_log2), base))};
  }
  __device__ float operator()(float value_before, float value_part) const {
    return __fmaf_rn(value_part, part, __fmul_rn(value_before, before));
  }
};

// `num_rows` rows of one slot, from `row` on.
struct SlotTile {
  int slot, row, num_rows;

  // Tile number `wanted` of the slots that have at least `min_rows` rows, each cut into tiles of `tile_rows`; slot is -1
  // where there are fewer tiles. All threads of a warp take part.
  __device__ static SlotTile find(const Launch& launch, int wanted, int tile_rows, int min_rows) {
    const CudaRows& s = launch.rows;
    const int32_t* starts = launch.attention.cu_seqlens_q;
    const int lane = threadIdx.x % kWarp;
    for (int i = 0; i < s.slots; i += kWarp) {
      int row = 0, count = 0;
      if (i + lane < s.slots) {
        row = starts[i + lane];
        count = min(starts[i + lane + 1], s.rows) - row;
      }
      const int own = count >= min_rows ? (count + tile_rows - 1) / tile_rows : 0, up_to = warp_prefix(own);
      const unsigned hit = __ballot_sync(kAllLanes, wanted < up_to);
      if (hit) {
        const int source = __ffs(hit) - 1, before = __shfl_sync(kAllLanes, up_to - own, source);
        const int first = __shfl_sync(kAllLanes, row, source) + (wanted - before) * tile_rows;
        return {i + source, first, min(tile_rows, __shfl_sync(kAllLanes, row + count, source) - first)};
      }
      wanted -= __shfl_sync(kAllLanes, up_to, kWarp - 1);
    }
    return {-1, 0, 0};
  }
};

// Calls f with a value of the element type and the head size as a constant.
template <typename F>
void with_head_dim(Half type, int head_dim, F&& f) {
  with_half(type, [&](auto t) {
    with_gpu_head_dim(head_dim, [&](auto dim) { f(t, dim); });
  });
}

// Rows that are alone in their slot; with batch_invariant all rows.
void launch_decode_attention(Half type, Launch launch, Stream stream);
// Rows of slots with several.
void launch_chunk_attention(Half type, const Launch& launch, Stream stream);
// The same with Hopper's own instructions; false, and nothing launched, where device, build or head size has none of it.
bool launch_chunk_attention_wgmma(Half type, const Launch& launch, Stream stream);

}  // namespace bireme
