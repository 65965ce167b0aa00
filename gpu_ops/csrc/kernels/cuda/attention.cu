// Decoding splits each row's context over warps; chunks of a prompt share tiles of keys between the rows of a slot.
#include "attention.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "attention_tile.cuh"

namespace bireme {
namespace {

constexpr int kMaxGroup = 16;     // query heads that share a key head: rows of one mma tile
constexpr int kMaxParts = kWarp;  // parts that a row's context is split into at most: a lane each
constexpr int kMinPartKeys = 128;
constexpr int kChunkWarps = 4;
constexpr float kLog2E = 1.4426950408889634f;

// Positions of one part: a function of the longest possible context alone, so that a row is always split alike.
int part_keys(const CudaRows& rows) {
  const int longest = rows.table_width * rows.block_size, share = (longest + kMaxParts - 1) / kMaxParts;
  return std::max(kMinPartKeys, (share + kTileKeys - 1) / kTileKeys * kTileKeys);
}

int max_parts(const CudaRows& rows) {
  return std::max(1, (rows.table_width * rows.block_size + part_keys(rows) - 1) / part_keys(rows));
}

struct Launch {
  CudaRows rows;
  CudaAttention attention;
  int part_keys, max_parts, part_floats;  // part_floats: a partial result is head_dim values, the best score, the sum
  int* arrivals;                          // [rows * kv_heads], zero between launches
  float scale_log2;
  int block_shift;
};

template <typename T>
__device__ inline PagedCache<T> cache_of(const Launch& launch, int slot, int kv_head, int length) {
  const CudaRows& s = launch.rows;
  return {static_cast<const T*>(launch.attention.k_cache), static_cast<const T*>(launch.attention.v_cache),
          s.block_tables + int64_t{slot} * s.table_width, s.table_width, s.blocks, launch.block_shift, s.kv_heads, kv_head,
          length};
}

// Two neighbouring elements of a row's query, zero where the row has none.
template <typename T>
__device__ inline uint32_t query_pair(const T* query, bool present, int column) {
  return present ? *reinterpret_cast<const uint32_t*>(query + column) : 0;
}

// ---------------------------------------------------------------------------------------------------------------- decoding

// The last part to arrive joins all parts of the row's query heads, in order.
template <typename T, int kHeadDim>
__device__ void join_parts(const Launch& launch, int row, int kv_head, int parts) {
  const CudaRows& s = launch.rows;
  const int group = s.q_heads / s.kv_heads, lane = threadIdx.x % kWarp;
  constexpr int kColumns = (kHeadDim + kWarp - 1) / kWarp;
  for (int member = 0; member < group; ++member) {
    const int64_t head = int64_t{row} * s.q_heads + kv_head * group + member;
    const float* partial = launch.attention.partials + head * launch.max_parts * launch.part_floats;
    // Lane p knows best score and sum of part p.
    const float* of_lane = partial + lane * launch.part_floats + kHeadDim;
    const float lane_best = lane < parts ? __ldcg(of_lane) : -INFINITY, lane_sum = lane < parts ? __ldcg(of_lane + 1) : 0.0f;
    float best = -INFINITY, sum = 0, out[kColumns] = {};
    constexpr int kAhead = 8;  // parts whose loads are under way together
    for (int start = 0; start < parts; start += kAhead) {
      float values[kAhead][kColumns];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
#pragma unroll
        for (int i = 0; i < kColumns; ++i) {
          const int column = i * kWarp + lane;
          values[j][i] = start + j < parts && column < kHeadDim ? __ldcg(partial + (start + j) * launch.part_floats + column) : 0.0f;
        }
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (start + j >= parts) break;
        const float part_best = __shfl_sync(kAllLanes, lane_best, start + j);
        const Join join = Join::of(best, part_best, launch.scale_log2);
        best = fmaxf(best, part_best);
        sum = join(sum, __shfl_sync(kAllLanes, lane_sum, start + j));
#pragma unroll
        for (int i = 0; i < kColumns; ++i) out[i] = join(out[i], values[j][i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const int column = i * kWarp + lane;
      if (column < kHeadDim) {
        static_cast<T*>(launch.attention.out)[head * kHeadDim + column] = from_float<T>(sum > 0 ? out[i] / sum : 0.0f);
      }
    }
  }
}

// Entry `i` of the rows that decode: with cu_seqlens_q one a slot, otherwise every row.
struct DecodeRow {
  int row, slot, position;

  __device__ static DecodeRow of(const Launch& launch, int i) {
    const CudaRows& s = launch.rows;
    DecodeRow entry{i, -1, -1};
    if (launch.attention.cu_seqlens_q) {
      entry.row = launch.attention.cu_seqlens_q[i];
      if (launch.attention.cu_seqlens_q[i + 1] - entry.row != 1 || entry.row >= s.rows) return {-1, -1, -1};
    }
    entry.slot = s.batch_ids[entry.row];
    entry.position = s.positions[entry.row];
    if (entry.slot < 0 || entry.slot >= s.slots || entry.position < 0) entry.slot = -1;
    return entry;
  }
};

template <typename T>
__device__ void zero_row(const Launch& launch, int row) {
  const int vecs = launch.rows.q_heads * launch.rows.head_dim / kVec;
  T* out = static_cast<T*>(launch.attention.out) + int64_t{row} * vecs * kVec;
  for (int i = threadIdx.x; i < vecs; i += blockDim.x) store_vec(out + i * kVec, zero_vec<T>());
}

// One warp a block. Work items are (row, part, kv head), numbered by a prefix sum over the rows' numbers of parts; blocks
// take them in turn, so that the grid depends on nothing that only the device knows.
template <typename T, int kHeadDim, int kStages>
__global__ void __launch_bounds__(kWarp) decode_kernel(Launch launch, int entries) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int kTileElements = kTileKeys * kRowStride<kHeadDim>;
  T* tiles = reinterpret_cast<T*>(shared);                                      // [kStages][k, v]
  int* starts = reinterpret_cast<int*>(tiles + 2 * kStages * kTileElements);  // [entries + 1], first item of each row
  const CudaRows& s = launch.rows;
  const int lane = threadIdx.x, group = s.q_heads / s.kv_heads;

  int items = 0;
  for (int i = 0; i < entries; i += kWarp) {
    int parts = 0;
    if (i + lane < entries) {
      const DecodeRow entry = DecodeRow::of(launch, i + lane);
      if (entry.slot >= 0) parts = min(entry.position / launch.part_keys + 1, launch.max_parts);
    }
    const int up_to = warp_prefix(parts);
    if (i + lane < entries) starts[i + lane + 1] = items + up_to;
    items += __shfl_sync(kAllLanes, up_to, kWarp - 1);
  }
  if (lane == 0) starts[0] = 0;
  __syncwarp();

  // Rows that nobody computes.
  const int tokens = launch.attention.cu_seqlens_q ? min(launch.attention.cu_seqlens_q[s.slots], s.rows) : 0;
  for (int row = tokens + blockIdx.x; row < s.rows; row += gridDim.x) {
    if (launch.attention.cu_seqlens_q || starts[row] == starts[row + 1]) zero_row<T>(launch, row);
  }

  for (int64_t item = blockIdx.x; item < int64_t{items} * s.kv_heads; item += gridDim.x) {
    const int unit = static_cast<int>(item / s.kv_heads), kv_head = static_cast<int>(item % s.kv_heads);
    int low = 0, high = entries - 1;  // the last row that starts at or before the unit
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (starts[middle] <= unit) low = middle; else high = middle - 1;
    }
    const DecodeRow entry = DecodeRow::of(launch, low);
    const int part = unit - starts[low], parts = starts[low + 1] - starts[low];
    const int begin = part * launch.part_keys, end = min(begin + launch.part_keys, entry.position + 1);
    const PagedCache<T> cache = cache_of<T>(launch, entry.slot, kv_head, end);
    const int num_tiles = (end - begin + kTileKeys - 1) / kTileKeys;
    const auto load = [&](int tile) {
      T* to = tiles + tile % kStages * 2 * kTileElements;
      if (tile < num_tiles) load_tile<T, kHeadDim, 1>(cache, begin + tile * kTileKeys, to, to + kTileElements, 0);
      commit_copies();
    };
    for (int tile = 0; tile < kStages - 1; ++tile) load(tile);

    const T* query = static_cast<const T*>(launch.attention.qkv) +
                     (int64_t{entry.row} * (s.q_heads + 2 * s.kv_heads) + kv_head * group) * kHeadDim;
    const int line = lane / 4;
    uint32_t q[kHeadDim / 16][4];
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int member = line + i % 2 * 8;
        q[step][i] = query_pair(query + int64_t{member} * kHeadDim, member < group, step * 16 + i / 2 * 8 + lane % 4 * 2);
      }
    }
    RowState<T, kHeadDim, 1> state;
    state.reset();
    state.position[0][0] = line < group ? entry.position : -1;
    state.position[0][1] = line + 8 < group ? entry.position : -1;
    const auto fragment = [&](int, int step, uint32_t(&a)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = q[step][i];
    };
    for (int tile = 0; tile < num_tiles; ++tile) {
      load(tile + kStages - 1);
      wait_copies<kStages - 1>();
      __syncwarp();
      const T* k_tile = tiles + tile % kStages * 2 * kTileElements;
      const int first = begin + tile * kTileKeys;
      state.add_tile(k_tile, k_tile + kTileElements, first, first + kTileKeys > end, launch.scale_log2, fragment);
      __syncwarp();
    }
    state.finish_sums();

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int member = line + half * 8;
      if (member >= group) continue;
      const int64_t head = int64_t{entry.row} * s.q_heads + kv_head * group + member;
      if (parts == 1) {
        const float share = state.sum[0][half];
        T* out = static_cast<T*>(launch.attention.out) + head * kHeadDim;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n) {
          *reinterpret_cast<uint32_t*>(out + n * 8 + lane % 4 * 2) =
              pack_pair<T>(state.out[0][n][2 * half] / share, state.out[0][n][2 * half + 1] / share);
        }
      } else {
        float* partial = launch.attention.partials + (head * launch.max_parts + part) * launch.part_floats;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n) {
          *reinterpret_cast<float2*>(partial + n * 8 + lane % 4 * 2) =
              make_float2(state.out[0][n][2 * half], state.out[0][n][2 * half + 1]);
        }
        if (lane % 4 == 0) {
          partial[kHeadDim] = state.best[0][half];
          partial[kHeadDim + 1] = state.sum[0][half];
        }
      }
    }
    if (parts == 1) continue;
    __threadfence();
    __syncwarp();
    int arrived = 0;
    int* counter = launch.arrivals + int64_t{entry.row} * s.kv_heads + kv_head;
    if (lane == 0) arrived = atomicAdd(counter, 1) + 1;
    arrived = __shfl_sync(kAllLanes, arrived, 0);
    if (arrived != parts) continue;
    __threadfence();
    join_parts<T, kHeadDim>(launch, entry.row, kv_head, parts);
    if (lane == 0) *counter = 0;
  }
}

// ------------------------------------------------------------------------------------------------------------------ chunks

// A block of four warps computes 64 * kTiles (token, query head) pairs of one slot and key head. With kInvariant the parts of
// the context are computed apart and joined, as decoding does.
template <typename T, int kHeadDim, int kTiles, int kStages, bool kInvariant>
__global__ void __launch_bounds__(kChunkWarps* kWarp, kTiles == 1 ? 1 : 2) chunk_kernel(Launch launch) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int kStride = kRowStride<kHeadDim>, kTileElements = kTileKeys * kStride, kRows = kChunkWarps * kTiles * 16;
  T* tiles = reinterpret_cast<T*>(shared);                // [kStages][k, v]
  T* queries = tiles + 2 * kStages * kTileElements;       // [kRows][kStride]
  const CudaRows& s = launch.rows;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int group = s.q_heads / s.kv_heads, tile_tokens = kRows / group, kv_head = blockIdx.x % s.kv_heads;

  // Which slot and which of its tiles this is; late tiles come first, because they take longest.
  int wanted = gridDim.x / s.kv_heads - 1 - blockIdx.x / s.kv_heads, slot = -1, first_row = 0, num_rows = 0;
  for (int i = 0; i < s.slots && slot < 0; i += kWarp) {
    int row = 0, count = 0;
    if (i + lane < s.slots) {
      row = launch.attention.cu_seqlens_q[i + lane];
      count = min(launch.attention.cu_seqlens_q[i + lane + 1], s.rows) - row;
    }
    const int own = count > 1 ? (count + tile_tokens - 1) / tile_tokens : 0, up_to = warp_prefix(own);
    const unsigned hit = __ballot_sync(kAllLanes, wanted < up_to);
    if (hit) {
      const int source = __ffs(hit) - 1;
      slot = i + source;
      const int before = __shfl_sync(kAllLanes, up_to - own, source);
      first_row = __shfl_sync(kAllLanes, row, source) + (wanted - before) * tile_tokens;
      num_rows = min(tile_tokens, __shfl_sync(kAllLanes, row + count, source) - first_row);
    }
    wanted -= __shfl_sync(kAllLanes, up_to, kWarp - 1);
  }
  if (slot < 0) return;

  const int row_elements = (s.q_heads + 2 * s.kv_heads) * kHeadDim;
  const T* qkv = static_cast<const T*>(launch.attention.qkv);
  for (int item = threadIdx.x; item < kRows * (kHeadDim / kVec); item += blockDim.x) {
    const int index = item / (kHeadDim / kVec), column = item % (kHeadDim / kVec) * kVec;
    const int token = index / group, member = index % group;
    const bool present = token < num_rows;
    const T* from = qkv + (present ? int64_t{first_row + token} * row_elements + (kv_head * group + member) * kHeadDim + column : 0);
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
      state.position[t][half] = token < num_rows ? s.positions[first_row + token] : -1;
    }
  }
  const int warp_last = state.last_position(), warp_first = state.first_position();
  // Positions of a slot's rows ascend.
  const int length = min(s.positions[first_row + num_rows - 1] + 1, s.table_width * s.block_size);
  const PagedCache<T> cache = cache_of<T>(launch, slot, kv_head, length);
  const int num_tiles = (length + kTileKeys - 1) / kTileKeys;
  const auto load = [&](int tile) {
    T* to = tiles + tile % kStages * 2 * kTileElements;
    if (tile < num_tiles) load_tile<T, kHeadDim, kChunkWarps>(cache, tile * kTileKeys, to, to + kTileElements, warp);
    commit_copies();
  };
  const int matrix = lane / 8;
  const T* query_row = queries + (warp * kTiles * 16 + matrix % 2 * 8 + lane % 8) * kStride + matrix / 2 * 8;
  const auto fragment = [&](int t, int step, uint32_t(&a)[4]) { load_matrices(a, query_row + t * 16 * kStride + step * 16); };

  constexpr int kKept = kInvariant ? kTiles : 1, kKeptColumns = kInvariant ? kHeadDim / 8 : 1;
  float whole[kKept][kKeptColumns][4] = {}, whole_best[kKept][2], whole_sum[kKept][2] = {};
  if constexpr (kInvariant) {
    for (int t = 0; t < kTiles; ++t) whole_best[t][0] = whole_best[t][1] = -INFINITY;
  }
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
    if constexpr (kInvariant) {
      if ((tile + 1) * kTileKeys % launch.part_keys != 0 && tile + 1 < num_tiles) continue;
      state.finish_sums();
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Join join = Join::of(whole_best[t][half], state.best[t][half], launch.scale_log2);
          whole_best[t][half] = fmaxf(whole_best[t][half], state.best[t][half]);
          whole_sum[t][half] = join(whole_sum[t][half], state.sum[t][half]);
#pragma unroll
          for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; ++i) whole[t][n][i] = join(whole[t][n][i], state.out[t][n][i]);
          }
        }
      }
      state.reset();
    }
  }
  if constexpr (!kInvariant) state.finish_sums();

#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int index = warp * kTiles * 16 + t * 16 + half * 8 + lane / 4, token = index / group, member = index % group;
      if (token >= num_rows) continue;
      float total;
      if constexpr (kInvariant) total = whole_sum[t][half]; else total = state.sum[t][half];
      T* out = static_cast<T*>(launch.attention.out) +
               (int64_t{first_row + token} * s.q_heads + kv_head * group + member) * kHeadDim;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        float low, high;
        if constexpr (kInvariant) {
          low = whole[t][n][2 * half], high = whole[t][n][2 * half + 1];
        } else {
          low = state.out[t][n][2 * half], high = state.out[t][n][2 * half + 1];
        }
        *reinterpret_cast<uint32_t*>(out + n * 8 + lane % 4 * 2) =
            total > 0 ? pack_pair<T>(low / total, high / total) : 0u;
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------- launching

struct DeviceLimits {
  int multiprocessors, shared_bytes;
};

DeviceLimits device_limits() {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  const int device = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = known.find(device);
  if (found == known.end()) {
    DeviceLimits limits{};
    check_cuda(cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
    check_cuda(cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory");
    found = known.emplace(device, limits).first;
  }
  return found->second;
}

// Counters of arrived parts, zero between launches. They grow outside graph capture only, and old ones stay: a captured graph
// may hold their address.
int* arrival_counters(int64_t count, Stream stream) {
  struct Counters {
    int* data = nullptr;
    int64_t count = 0;
  };
  static std::mutex mutex;
  static std::map<int, Counters> known;
  const int device = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  Counters& counters = known[device];
  if (counters.count < count) {
    count = std::max<int64_t>(count, 65536);
    check_cuda(cudaMalloc(reinterpret_cast<void**>(&counters.data), count * sizeof(int)), "attention counters");
    check_cuda(cudaMemsetAsync(counters.data, 0, count * sizeof(int), stream), "attention counters");
    check_cuda(cudaStreamSynchronize(stream), "attention counters");
    counters.count = count;
  }
  return counters.data;
}

template <typename Kernel>
void allow_shared(Kernel kernel, int bytes) {
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "attention shared memory");
}

template <typename T, int kHeadDim>
void launch_decode(const Launch& launch, Stream stream) {
  const CudaRows& s = launch.rows;
  const DeviceLimits limits = device_limits();
  const int entries = launch.attention.cu_seqlens_q ? s.slots : s.rows;
  const int tile_bytes = 2 * kTileKeys * kRowStride<kHeadDim> * static_cast<int>(sizeof(T));
  const int list_bytes = (entries + 1) * static_cast<int>(sizeof(int)), bytes = 2 * tile_bytes + list_bytes;
  if (bytes > limits.shared_bytes) throw std::runtime_error("paged_attention: too many rows without cu_seqlens_q");
  const int resident = std::max(1, (limits.shared_bytes + 1024) / (bytes + 1024));
  const int64_t items = std::max(int64_t{entries} * s.kv_heads * launch.max_parts, int64_t{s.rows});
  const int blocks = static_cast<int>(std::min(items, int64_t{limits.multiprocessors} * resident));
  allow_shared(decode_kernel<T, kHeadDim, 2>, bytes);
  decode_kernel<T, kHeadDim, 2><<<blocks, kWarp, bytes, stream>>>(launch, entries);
  check_launch("paged_attention of single rows");
}

template <typename T, int kHeadDim, int kTiles, int kStages, bool kInvariant>
void launch_chunk(const Launch& launch, int bytes, Stream stream) {
  const CudaRows& s = launch.rows;
  const int tile_tokens = kChunkWarps * kTiles * 16 / (s.q_heads / s.kv_heads);
  // Each slot rounds up once; slots with several rows are at most rows / 2.
  const int tiles = s.rows / tile_tokens + std::min(s.slots, s.rows / 2 + 1);
  allow_shared(chunk_kernel<T, kHeadDim, kTiles, kStages, kInvariant>, bytes);
  chunk_kernel<T, kHeadDim, kTiles, kStages, kInvariant><<<tiles * s.kv_heads, kChunkWarps * kWarp, bytes, stream>>>(launch);
  check_launch("paged_attention of chunks");
}

template <typename T, int kHeadDim>
void launch_chunks(const Launch& launch, Stream stream) {
  const int shared = device_limits().shared_bytes;
  const auto bytes = [](int tiles, int stages) {
    return (2 * stages * kTileKeys + kChunkWarps * tiles * 16) * kRowStride<kHeadDim> * static_cast<int>(sizeof(T));
  };
  if (launch.attention.batch_invariant) {
    if (bytes(1, 2) <= shared) return launch_chunk<T, kHeadDim, 1, 2, true>(launch, bytes(1, 2), stream);
    return launch_chunk<T, kHeadDim, 1, 1, true>(launch, bytes(1, 1), stream);
  }
  if (bytes(2, 2) <= shared) return launch_chunk<T, kHeadDim, 2, 2, false>(launch, bytes(2, 2), stream);
  launch_chunk<T, kHeadDim, 2, 1, false>(launch, bytes(2, 1), stream);
}

template <typename T>
void launch_attention(const Launch& launch, Stream stream) {
  const auto with_head_dim = [&](auto dim) {
    constexpr int kHeadDim = decltype(dim)::value;
    launch_decode<T, kHeadDim>(launch, stream);
    if (launch.attention.cu_seqlens_q && launch.attention.max_rows_per_slot > 1) launch_chunks<T, kHeadDim>(launch, stream);
  };
  switch (launch.rows.head_dim) {
    case 64: return with_head_dim(std::integral_constant<int, 64>{});
    case 80: return with_head_dim(std::integral_constant<int, 80>{});
    case 96: return with_head_dim(std::integral_constant<int, 96>{});
    default: return with_head_dim(std::integral_constant<int, 128>{});
  }
}

}  // namespace

bool attention_supports(int head_dim, int q_heads, int kv_heads) {
  return (head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128) && q_heads / kv_heads <= kMaxGroup;
}

int64_t attention_partials(const CudaRows& rows) {
  const int parts = max_parts(rows);
  return parts == 1 ? 1 : int64_t{rows.rows} * rows.q_heads * parts * (rows.head_dim + 2);
}

void paged_attention_cuda(Half type, const CudaAttention& attention, const CudaRows& rows, Stream stream) {
  Launch launch{rows, attention, part_keys(rows), max_parts(rows), rows.head_dim + 2, nullptr, attention.scale * kLog2E, 0};
  while (1 << launch.block_shift < rows.block_size) ++launch.block_shift;
  launch.arrivals = arrival_counters(int64_t{rows.rows} * rows.kv_heads, stream);
  with_half(type, [&](auto t) { launch_attention<decltype(t)>(launch, stream); });
}

}  // namespace bireme
