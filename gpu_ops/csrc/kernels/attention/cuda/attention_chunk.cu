// Attention of several rows of a slot, as prompts have: tiles of keys in shared memory serve all rows of a block.
#include <algorithm>

#include "kernels/attention/cuda/attention_launch.cuh"
#include "kernels/attention/cuda/attention_tile.cuh"
#include "kernels/device/cuda/device_limit.cuh"

namespace bireme {
namespace {

constexpr int kWarps = 4;
constexpr int kTiles = 2;  // of 16 lines, a warp
constexpr int kLines = kWarps * kTiles * 16;  // (row, query head of the group) pairs of a block

// A block computes kLines lines of one slot and key head.
template <typename T, int kHeadDim, int kStages>
__global__ void __launch_bounds__(kWarps* kWarp, 2) chunk_kernel(Launch launch) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int kStride = kRowStride<kHeadDim>, kTileElements = kTileKeys * kStride;
  T* tiles = reinterpret_cast<T*>(shared);           // [kStages][k, v]
  T* queries = tiles + 2 * kStages * kTileElements;  // [kLines][kStride]
  const CudaRows& s = launch.rows;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int group = s.q_heads / s.kv_heads, tile_rows = kLines / group, kv_head = blockIdx.x % s.kv_heads;

  // Late tiles come first, because they take longest.
  const SlotTile own = SlotTile::find(launch, gridDim.x / s.kv_heads - 1 - blockIdx.x / s.kv_heads, tile_rows, 2);
  if (own.slot < 0) return;

  const int row_elements = (s.q_heads + 2 * s.kv_heads) * kHeadDim;
  const T* qkv = static_cast<const T*>(launch.attention.qkv);
  for (int item = threadIdx.x; item < kLines * (kHeadDim / kVec); item += blockDim.x) {
    const int index = item / (kHeadDim / kVec), column = item % (kHeadDim / kVec) * kVec;
    const int token = index / group, member = index % group;
    const bool present = token < own.num_rows;
    const T* from = qkv + (present ? int64_t{own.row + token} * row_elements + (kv_head * group + member) * kHeadDim + column : 0);
    copy_async(queries + index * kStride + column, from, present);
  }
  commit_copies();

  RowState<T, kHeadDim, kTiles> state;
  state.reset();
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = (warp * kTiles * 16 + t * 16 + half * 8 + lane / 4) / group;
      state.position[t][half] = token < own.num_rows ? s.positions[own.row + token] : -1;
    }
  }
  const int warp_last = state.last_position(), warp_first = state.first_position();
  // Positions of a slot's rows ascend.
  const int length = min(s.positions[own.row + own.num_rows - 1] + 1, s.table_width * s.block_size);
  const PagedCache<T> cache{static_cast<const T*>(launch.attention.k_cache), static_cast<const T*>(launch.attention.v_cache),
                            s.block_tables + int64_t{own.slot} * s.table_width, s.table_width, s.blocks, launch.block_shift,
                            s.kv_heads, kv_head, length};
  const int num_tiles = (length + kTileKeys - 1) / kTileKeys;
  const auto load = [&](int tile) {
    T* to = tiles + tile % kStages * 2 * kTileElements;
    if (tile < num_tiles) load_tile<T, kHeadDim, kWarps>(cache, tile * kTileKeys, to, to + kTileElements, warp);
    commit_copies();
  };
  const int matrix = lane / 8;
  const T* query_row = queries + (warp * kTiles * 16 + matrix % 2 * 8 + lane % 8) * kStride + matrix / 2 * 8;
  const auto fragment = [&](int t, int step, uint32_t(&a)[4]) { load_matrices(a, query_row + t * 16 * kStride + step * 16); };

  for (int tile = 0; tile < kStages - 1; ++tile) load(tile);
  for (int tile = 0; tile < num_tiles; ++tile) {
    load(tile + kStages - 1);
    wait_copies<kStages - 1>();
    __syncthreads();
    const int first = tile * kTileKeys;
    if (first <= warp_last) {
      const T* k_tile = tiles + tile % kStages * 2 * kTileElements;
      state.add_tile(k_tile, k_tile + kTileElements, first, first + kTileKeys - 1 > warp_first, launch.scale_log2, fragment);
    }
    __syncthreads();
  }
  state.finish_sums();

#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int index = warp * kTiles * 16 + t * 16 + half * 8 + lane / 4, token = index / group, member = index % group;
      if (token >= own.num_rows) continue;
      const float total = state.sum[t][half];
      T* out = static_cast<T*>(launch.attention.out) + (int64_t{own.row + token} * s.q_heads + kv_head * group + member) * kHeadDim;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        const float low = state.out[t][n][2 * half], high = state.out[t][n][2 * half + 1];
        *reinterpret_cast<uint32_t*>(out + n * 8 + lane % 4 * 2) = total > 0 ? pack_pair<T>(low / total, high / total) : 0u;
      }
    }
  }
}

template <typename T, int kHeadDim, int kStages>
void launch_stages(const Launch& launch, int bytes, Stream stream) {
  const CudaRows& s = launch.rows;
  const int tile_rows = kLines / (s.q_heads / s.kv_heads);
  // Each slot rounds up once; slots with several rows are at most rows / 2.
  const int tiles = s.rows / tile_rows + std::min(s.slots, s.rows / 2 + 1);
  const auto kernel = chunk_kernel<T, kHeadDim, kStages>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "attention shared memory");
  kernel<<<tiles * s.kv_heads, kWarps * kWarp, bytes, stream>>>(launch);
  check_launch("paged_attention of chunks");
}

}  // namespace

void launch_chunk_attention(Half type, const Launch& launch, Stream stream) {
  with_head_dim(type, launch.rows.head_dim, [&](auto t, auto dim) {
    using T = decltype(t);
    constexpr int kHeadDim = decltype(dim)::value;
    constexpr int kRowBytes = kRowStride<kHeadDim> * static_cast<int>(sizeof(T));
    const auto bytes = [](int stages) { return (2 * stages * kTileKeys + kLines) * kRowBytes; };
    if (bytes(2) <= shared_limit()) return launch_stages<T, kHeadDim, 2>(launch, bytes(2), stream);
    launch_stages<T, kHeadDim, 1>(launch, bytes(1), stream);
  });
}

}  // namespace bireme
