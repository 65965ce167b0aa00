// Attention of several rows of a slot on Hopper: one warpgroup brings keys and values to shared memory, two others compute.
//
// The way of FlashAttention-3 (Shah et al. 2024): the scores of the next tile are multiplied while the softmax of this one is
// computed, and each computing warpgroup has lines of its own, so that one's softmax hides behind the other's products.
#include <algorithm>

#include "kernels/attention/cuda/attention_launch.cuh"
#include "kernels/attention/cuda/attention_tile.cuh"
#include "kernels/device/cuda/wgmma.cuh"

namespace bireme {
namespace {

constexpr int kGroupThreads = 128;                  // of a warpgroup
constexpr int kComputing = 2;                       // warpgroups
constexpr int kGroupLines = 64;                     // (row, query head of the group) pairs of a computing warpgroup
constexpr int kLines = kComputing * kGroupLines;
constexpr int kKeys = 128;                          // positions of a tile
constexpr int kStages = 3;                          // tiles of keys, and as many of values, in shared memory
constexpr int kPanelBytes = kKeys * kPanelRowBytes;
static_assert(kLines == kKeys, "queries, keys and values have panels of one size");

template <int kHeadDim>
constexpr int kTileBytes = kHeadDim / kPanelColumns * kPanelBytes;
// Queries and tiles, and what it takes to begin at a multiple of 1,024 bytes.
template <int kHeadDim>
constexpr int kSharedBytes = (1 + 2 * kStages) * kTileBytes<kHeadDim> + 1024;

#ifdef BIREME_HAS_WGMMA

struct Shared {
  unsigned char *queries, *keys, *values;
  Barrier *full_keys, *full_values, *free_keys, *free_values;  // [kStages]
};

__device__ inline void* place(unsigned char* panels, int row, int piece) {
  return panels + piece / 8 * kPanelBytes + panel_offset(row, piece % 8);
}

// Positions [first, first + kKeys) of keys or values, zeros beyond the length.
template <typename T, int kHeadDim>
__device__ inline void copy_tile(const PagedCache<T>& cache, const T* from_cache, int first, unsigned char* to) {
  // Blocks hold a multiple of 16 positions, so that 16 of them lie in one piece.
  constexpr int kRun = 16, kWarpKeys = kKeys / (kGroupThreads / kWarp), kPieces = kHeadDim / kVec;
  const int lane = threadIdx.x % kWarp, row = threadIdx.x / kWarp * kWarpKeys, start = first + row;
  const int64_t offset = lane < kWarpKeys / kRun ? cache.template offset<kHeadDim>(start + lane * kRun) : -1;
#pragma unroll
  for (int run = 0; run < kWarpKeys / kRun; ++run) {
    const int64_t begin = __shfl_sync(kAllLanes, offset, run);
    const int left = begin < 0 ? 0 : cache.length - start - run * kRun;
    const T* from = from_cache + max(begin, int64_t{0});
#pragma unroll
    for (int i = 0; i < kRun * kPieces / kWarp; ++i) {
      const int item = i * kWarp + lane, key = item / kPieces;
      copy_async(place(to, row + run * kRun + key, item % kPieces), from + (key < left ? item * kVec : 0), key < left);
    }
  }
}

// Tiles are brought in the order in which they are used: keys 0, keys 1, values 0, keys 2, values 1, ...
template <typename T, int kHeadDim>
__device__ void bring(const Launch& launch, const SlotTile& own, int kv_head, const PagedCache<T>& cache, int tiles,
                      const Shared& shared) {
  constexpr int kPieces = kHeadDim / kVec;
  const CudaRows& s = launch.rows;
  const int group = s.q_heads / s.kv_heads, row_elements = (s.q_heads + 2 * s.kv_heads) * kHeadDim;
  const T* queries = static_cast<const T*>(launch.attention.qkv) + int64_t{own.row} * row_elements + kv_head * group * kHeadDim;
  for (int item = threadIdx.x; item < kLines * kPieces; item += kGroupThreads) {
    const int line = item / kPieces, piece = item % kPieces, token = line / group;
    const bool present = token < own.num_rows;
    const T* from = queries + (present ? int64_t{token} * row_elements + line % group * kHeadDim + piece * kVec : 0);
    copy_async(place(shared.queries, line, piece), from, present);
  }
  const auto bring_tile = [&](int tile, const T* from, unsigned char* to, Barrier* full, Barrier* free) {
    const int stage = tile % kStages;
    if (tile >= kStages) free[stage].wait(tile / kStages - 1);
    copy_tile<T, kHeadDim>(cache, from, tile * kKeys, to + stage * kTileBytes<kHeadDim>);
    full[stage].arrive_after_copies();  // the first time, those of the queries too
  };
  const auto bring_keys = [&](int tile) { bring_tile(tile, cache.k, shared.keys, shared.full_keys, shared.free_keys); };
  if (tiles > 0) bring_keys(0);
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) bring_keys(tile + 1);
    bring_tile(tile, cache.v, shared.values, shared.full_values, shared.free_values);
  }
}

// The running softmax of a warpgroup's lines.
template <typename T, int kHeadDim>
class Attended {
 public:
  __device__ Attended(const Shared& shared, int group)
      : shared_(shared), queries_(shared_address(shared.queries) + group * kGroupLines * kPanelRowBytes) {
#pragma unroll
    for (float& x : out_) x = 0;
  }

  // Tiles [0, tiles), of which every line sees all of [0, whole); position: of this thread's two lines.
  __device__ void attend(int tiles, int whole, const int (&position)[2], float scale_log2) {
    if (tiles == 0) return;
    wait_for(shared_.full_keys, 0);
    begin_products();
    begin_scores(0);
    wait_products<0>();
    settle(score_);
    give_back(shared_.free_keys, 0);
    float rescale[2];
    soften<true>(0, position, scale_log2, rescale);
    pack();
    for (int tile = 1; tile < whole; ++tile) add_tile<false>(tile, position, scale_log2);
    for (int tile = max(whole, 1); tile < tiles; ++tile) add_tile<true>(tile, position, scale_log2);
    wait_for(shared_.full_values, tiles - 1);
    begin_products();
    begin_adding(tiles - 1);
    wait_products<0>();
    settle(out_);
    give_back(shared_.free_values, tiles - 1);
  }

  // Tiles that only the other warpgroup needs.
  __device__ void skip(int from, int tiles) {
    for (int tile = from; tile < tiles; ++tile) {
      wait_for(shared_.full_keys, tile);
      give_back(shared_.free_keys, tile);
      wait_for(shared_.full_values, tile);
      give_back(shared_.free_values, tile);
    }
  }

  // The result of line `half`, [kHeadDim] at `out`; all four lanes of the line take part, whether `present` or not.
  __device__ void store(int half, bool present, T* out) const {
    float total = sum_[half];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    if (!present) return;
    const float share = total > 0 ? 1 / total : 0;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
      const float low = out_[n * 4 + 2 * half], high = out_[n * 4 + 2 * half + 1];
      *reinterpret_cast<uint32_t*>(out + n * 8 + threadIdx.x % 4 * 2) = pack_pair<T>(low * share, high * share);
    }
  }

 private:
  __device__ void wait_for(Barrier* full, int tile) const {
    full[tile % kStages].wait(tile / kStages);
    show_to_products();
  }
  __device__ void give_back(Barrier* free, int tile) const {
    if (threadIdx.x % kWarp == 0) free[tile % kStages].arrive();
  }

  // Scores of this tile, and meanwhile the values of the one before it.
  template <bool kMasked>
  __device__ void add_tile(int tile, const int (&position)[2], float scale_log2) {
    float rescale[2];
    wait_for(shared_.full_keys, tile);
    begin_products();
    begin_scores(tile);
    wait_for(shared_.full_values, tile - 1);
    begin_adding(tile - 1);
    wait_products<1>();
    settle(score_);
    give_back(shared_.free_keys, tile);
    soften<kMasked>(tile * kKeys, position, scale_log2, rescale);
    settle(score_);  // the softmax, while values are added
    wait_products<0>();
    settle(out_);
    give_back(shared_.free_values, tile - 1);
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) out_[i] *= rescale[i / 2 % 2];
    pack();
  }

  __device__ void begin_scores(int tile) {
    const uint64_t queries = operand_at(queries_, 0);
    const uint64_t keys = operand_at(shared_address(shared_.keys + tile % kStages * kTileBytes<kHeadDim>), 0);
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      const int offset = operand_offset(step / 4 * kPanelBytes + step % 4 * 32);
      multiply<T>(score_, queries + offset, keys + offset, step > 0);
    }
    commit_products();
  }

  __device__ void begin_adding(int tile) {
    const uint64_t values = operand_at(shared_address(shared_.values + tile % kStages * kTileBytes<kHeadDim>), kPanelBytes);
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
      multiply_add<T>(out_, weight_[step], values + operand_offset(step * 16 * kPanelRowBytes));
    }
    commit_products();
  }

  template <bool kMasked>
  __device__ void soften(int first, const int (&position)[2], float scale_log2, float (&rescale)[2]) {
    if (kMasked) {
#pragma unroll
      for (int i = 0; i < kKeys / 2; ++i) {
        if (first + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 > position[i / 2 % 2]) score_[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = best_[half];
#pragma unroll
      for (int i = 0; i < kKeys / 2; i += 4) top = fmaxf(top, fmaxf(score_[i + 2 * half], score_[i + 2 * half + 1]));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
      // A row that has seen no key keeps weights of zero.
      const float base = __fmul_rn(top == -INFINITY ? 0.0f : top, scale_log2);
      // Rounded before the difference: exactly 1 where the tile brought nothing better.
      rescale[half] = exp2_fast(__fsub_rn(__fmul_rn(best_[half], scale_log2), base));
      best_[half] = top;
      float total = 0;
#pragma unroll
      for (int i = 0; i < kKeys / 2; i += 4) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          float& weight = score_[i + 2 * half + j];
          weight = exp2_fast(fmaf(weight, scale_log2, -base));
          total += weight;
        }
      }
      sum_[half] = fmaf(sum_[half], rescale[half], total);
    }
  }

  __device__ void pack() {
#pragma unroll
    for (int step = 0; step < kKeys / 16; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) weight_[step][i] = pack_pair<T>(score_[step * 8 + i * 2], score_[step * 8 + i * 2 + 1]);
    }
    settle(weight_);
    settle(out_);
  }

  const Shared& shared_;
  uint32_t queries_;
  float out_[kHeadDim / 2], score_[kKeys / 2];
  uint32_t weight_[kKeys / 16][4];
  float best_[2] = {-INFINITY, -INFINITY}, sum_[2] = {0, 0};
};

template <typename T, int kHeadDim>
__device__ void compute(const Launch& launch, const SlotTile& own, int kv_head, int length, int tiles, const Shared& shared) {
  const CudaRows& s = launch.rows;
  const int index = same_in_warp(threadIdx.x / kGroupThreads) - 1, group = s.q_heads / s.kv_heads;
  const int32_t* positions = s.positions + own.row;
  const int first_token = index * kGroupLines / group, end_token = (index * kGroupLines + kGroupLines - 1) / group;
  const int last_token = min(end_token, own.num_rows - 1);
  const int needed = first_token > last_token ? 0 : (min(positions[last_token] + 1, length) + kKeys - 1) / kKeys;
  const int first_line = index * kGroupLines + threadIdx.x % kGroupThreads / kWarp * 16 + threadIdx.x % kWarp / 4;
  int position[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = (first_line + half * 8) / group;
    position[half] = token < own.num_rows ? min(positions[token], length - 1) : -1;
  }
  // Lines without a token must see nothing.
  const int all_see = end_token < own.num_rows ? positions[first_token] + 1 : 0;
  const int own_tiles = same_in_warp(needed), whole_tiles = same_in_warp(all_see / kKeys);
  Attended<T, kHeadDim> attended(shared, index);
  attended.attend(own_tiles, min(whole_tiles, own_tiles), position, launch.scale_log2);
  attended.skip(own_tiles, tiles);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int line = first_line + half * 8, token = line / group;
    const int64_t head = (int64_t{own.row} + token) * s.q_heads + kv_head * group + line % group;
    attended.store(half, token < own.num_rows, static_cast<T*>(launch.attention.out) + head * kHeadDim);
  }
}

#endif

// A block computes kLines lines of one slot and key head. Its shared memory of fixed size tells whether it was compiled for
// such a device.
template <typename T, int kHeadDim>
__global__ void __launch_bounds__((1 + kComputing) * kGroupThreads, 1) chunk_wgmma_kernel(Launch launch) {
#ifdef BIREME_HAS_WGMMA
  extern __shared__ unsigned char dynamic[];
  __shared__ Barrier full[2 * kStages], free[2 * kStages];  // of keys, then of values
  const CudaRows& s = launch.rows;
  const int kv_head = blockIdx.x % s.kv_heads;
  // Late tiles come first, because they take longest.
  const int wanted = gridDim.x / s.kv_heads - 1 - blockIdx.x / s.kv_heads;
  const SlotTile own = SlotTile::find(launch, wanted, kLines / (s.q_heads / s.kv_heads), 2);
  if (own.slot < 0) return;
  if (threadIdx.x < 2 * kStages) {
    full[threadIdx.x].init(kGroupThreads);
    free[threadIdx.x].init(kComputing * kGroupThreads / kWarp);
  }
  __syncthreads();
  unsigned char* tiles_at = dynamic + (1024 - shared_address(dynamic) % 1024) % 1024;
  unsigned char* keys = tiles_at + kTileBytes<kHeadDim>;
  const Shared shared{tiles_at, keys, keys + kStages * kTileBytes<kHeadDim>, full, full + kStages, free, free + kStages};
  // Positions of a slot's rows ascend.
  const int length = min(s.positions[own.row + own.num_rows - 1] + 1, s.table_width * s.block_size);
  const int tiles = same_in_warp((length + kKeys - 1) / kKeys);
  if (same_in_warp(threadIdx.x / kGroupThreads) == 0) {
    shrink_registers<40>();
    const PagedCache<T> cache{static_cast<const T*>(launch.attention.k_cache), static_cast<const T*>(launch.attention.v_cache),
                              s.block_tables + int64_t{own.slot} * s.table_width, s.table_width, s.blocks, launch.block_shift,
                              s.kv_heads, kv_head, length};
    bring<T, kHeadDim>(launch, own, kv_head, cache, tiles, shared);
  } else {
    grow_registers<232>();
    compute<T, kHeadDim>(launch, own, kv_head, length, tiles, shared);
  }
#endif
}

template <typename T, int kHeadDim>
bool launch_kernel(const Launch& launch, Stream stream) {
  const auto kernel = chunk_wgmma_kernel<T, kHeadDim>;
  // Asked for once: all devices of a process are alike.
  static const bool is_compiled = [&] {
    cudaFuncAttributes attributes{};
    check_cuda(cudaFuncGetAttributes(&attributes, kernel), "attention kernel");
    return attributes.sharedSizeBytes > 0;
  }();
  if (!is_compiled) return false;
  const CudaRows& s = launch.rows;
  // Each slot rounds up once; slots with several rows are at most rows / 2.
  const int tiles = s.rows / (kLines / (s.q_heads / s.kv_heads)) + std::min(s.slots, s.rows / 2 + 1);
  constexpr int kBytes = kSharedBytes<kHeadDim>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes), "attention shared memory");
  kernel<<<tiles * s.kv_heads, (1 + kComputing) * kGroupThreads, kBytes, stream>>>(launch);
  check_launch("paged_attention of chunks");
  return true;
}

}  // namespace

bool launch_chunk_attention_wgmma(Half type, const Launch& launch, Stream stream) {
  return with_half(type, [&](auto t) {
    using T = decltype(t);
    switch (launch.rows.head_dim) {
      case 64: return launch_kernel<T, 64>(launch, stream);
      case 128: return launch_kernel<T, 128>(launch, stream);
      default: return false;
    }
  });
}

}  // namespace bireme
