// Attention of single rows: the context is split into parts, a block each, whose four warps take tiles of 16 positions in turn.
//
// With batch_invariant parts have one length, so that a row is always split alike, and rows of a chunk go the way of single
// rows: a query tile has 16 lines, a line for each (row of the slot, query head of the group).
#include <algorithm>
#include <map>
#include <mutex>

#include "chained_launch.cuh"
#include "decode_share.cuh"
#include "decode_tile.cuh"
#include "rotary.cuh"

namespace bireme {
namespace {

constexpr int kMaxParts = 128;
constexpr int kInvariantPart = 128;  // positions of a part with batch_invariant, unless the longest context asks for more

// Where the tile at position `first` lies, or null.
template <typename T>
__device__ inline const T* tile_at(const void* cache, const Launch& launch, const int32_t* table, int kv_head, int first) {
  const CudaRows& s = launch.rows;
  const int index = first >> launch.block_shift;
  const int block = index < s.table_width ? table[index] : -1;
  if (block < 0 || block >= s.blocks) return nullptr;
  const int entry = first & (s.block_size - 1);
  return static_cast<const T*>(cache) + (((int64_t{block} * s.kv_heads + kv_head) << launch.block_shift) + entry) * s.head_dim;
}

// Brings the block's queries to shared memory. With `cos_sin` the entry is one row, whose queries are turned on the way,
// and the block that `writes` its key head puts key and value into the cache.
template <typename T, int kHeadDim, int kLines>
__device__ void prepare_queries(const Launch& launch, const Entry& entry, int kv_head, bool writes, T* queries) {
  constexpr int kLine = Shape<T, kHeadDim>::kQueryStride, kVecs = kHeadDim / kVec, kTurns = kVecs / 2;
  const CudaRows& s = launch.rows;
  const int group = s.q_heads / s.kv_heads, heads = s.q_heads + 2 * s.kv_heads;
  const T* qkv = static_cast<const T*>(launch.attention.qkv) + int64_t{entry.row} * heads * kHeadDim;
  if (!launch.attention.cos_sin) {
    for (int item = threadIdx.x; item < kLines * kVecs; item += blockDim.x) {
      const int line = item / kVecs, column = item % kVecs * kVec, token = line / group;
      const bool present = token < entry.num_rows;
      const T* from = qkv + (int64_t{token} * heads + kv_head * group + line % group) * kHeadDim + column;
      store_vec(queries + line * kLine + column, present ? load_vec(from) : zero_vec<T>());
    }
    return;
  }
  const float* cosines = launch.attention.cos_sin + int64_t{entry.last} * kHeadDim;
  for (int item = threadIdx.x; item < kLines * kTurns; item += blockDim.x) {
    const int line = item / kTurns, column = item % kTurns * kVec;
    Vec8<T> first = zero_vec<T>(), second = zero_vec<T>();
    if (line < group) turn(qkv + (kv_head * group + line) * kHeadDim, column, kHeadDim / 2, cosines, first, second);
    store_vec(queries + line * kLine + column, first);
    store_vec(queries + line * kLine + column + kHeadDim / 2, second);
  }
  if (!writes) return;
  const int32_t* table = s.block_tables + int64_t{entry.slot} * s.table_width;
  const int inside = entry.last % kTile;
  T* key = const_cast<T*>(tile_at<T>(launch.attention.k_cache, launch, table, kv_head, entry.last - inside));
  T* value = const_cast<T*>(tile_at<T>(launch.attention.v_cache, launch, table, kv_head, entry.last - inside));
  if (!key) return;
  // The last warps, which have the fewest queries to turn.
  const int item = blockDim.x - 1 - static_cast<int>(threadIdx.x);
  if (item < kTurns) {
    Vec8<T> first, second;
    turn(qkv + (s.q_heads + kv_head) * kHeadDim, item * kVec, kHeadDim / 2, cosines, first, second);
    store_vec(key + inside * kHeadDim + item * kVec, first);
    store_vec(key + inside * kHeadDim + item * kVec + kHeadDim / 2, second);
  } else if (item < kTurns + kVecs) {
    const int column = (item - kTurns) * kVec;
    store_vec(value + inside * kHeadDim + column, load_vec(qkv + (s.q_heads + s.kv_heads + kv_head) * kHeadDim + column));
  }
}

__device__ inline float4 joined(const Join& join, float4 before, float4 part) {
  return make_float4(join(before.x, part.x), join(before.y, part.y), join(before.z, part.z), join(before.w, part.w));
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
__device__ inline void store_line(T* out, float4 value, float sum) {
  const float divisor = sum > 0 ? sum : 1;
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

// Blocks that share a multiprocessor: as many as the registers of their sums leave room for.
template <int kHeadDim, int kHalves>
constexpr int kResident = kHeadDim * kHalves > 128 ? 2 : kHeadDim * kHalves > 64 ? 3 : 4;

template <typename T, int kHeadDim, int kHalves>
__global__ void __launch_bounds__(kWarps* kWarp, kResident<kHeadDim, kHalves>) decode_kernel(Launch launch) {
  using S = Shape<T, kHeadDim>;
  extern __shared__ __align__(16) unsigned char shared[];
  float* sums = reinterpret_cast<float*>(shared);  // [kWarps][launch.lines][head_dim]
  __shared__ __align__(16) T queries[8 * kHalves * S::kQueryStride];
  __shared__ float2 best_and_sum[kWarps][8 * kHalves];
  __shared__ bool is_last;
  const CudaRows& s = launch.rows;
  const int warp = threadIdx.x / kWarp, group = s.q_heads / s.kv_heads, lines = launch.lines;
  const int kv_head = blockIdx.x % s.kv_heads, place = blockIdx.x / s.kv_heads, places = gridDim.x / s.kv_heads;

  const SingleRows single_rows(launch);
  const auto share_of = [&](int round) {
    return launch.tiled ? share_of_tile(launch, place, blockIdx.y + round * gridDim.y)
                        : single_rows.share(place + round * places);
  };
  Share share = share_of(0);
  // Short rows leave registers for the loads of two tiles.
  constexpr int kAhead = kHeadDim > 64 ? 1 : 2;
  Keys<T, kHeadDim> keys[kAhead];
  Values<T, kHeadDim> values[kAhead];
  const auto load = [&](auto& of_tile, const void* cache, int first) {
    const int32_t* table = s.block_tables + int64_t{share.entry.slot} * s.table_width;
    const T* tile = tile_at<T>(cache, launch, table, kv_head, first);
    of_tile.load(tile, tile ? share.entry.last + 1 - first : 0);
  };
  const auto load_tile = [&](int ahead, int first) {
    load(keys[ahead], launch.attention.k_cache, first);
    load(values[ahead], launch.attention.v_cache, first);
  };

  // Where this kernel alone writes to the cache, older keys do not wait for this step's queries.
  int first = share.part * share.keys + warp * kTile;
  const bool loads_early = launch.attention.cos_sin && share.entry.slot >= 0 && first + kTile <= share.entry.last;
  if (loads_early) load_tile(0, first);
  wait_for_predecessor();
  start_successor();

  const auto zero = [&](int row) {
    T* out = static_cast<T*>(launch.attention.out) + (int64_t{row} * s.q_heads + kv_head * group) * kHeadDim;
    for (int i = threadIdx.x; i < group * kHeadDim / kVec; i += blockDim.x) store_vec(out + i * kVec, zero_vec<T>());
  };
  if (blockIdx.y == 0) {
    // Rows that nobody computes.
    const bool packed = launch.attention.cu_seqlens_q;
    for (int row = place + (packed ? min(launch.attention.cu_seqlens_q[s.slots], s.rows) : 0); row < s.rows; row += places) {
      if (packed || single_row(launch, row).slot < 0) zero(row);
    }
  }

  bool is_loaded = loads_early;
  for (int round = 0; share.entry.slot >= 0;) {
    const Entry entry = share.entry;
    const int begin = share.part * share.keys, end = min(begin + share.keys, entry.last + 1);
    __syncthreads();
    prepare_queries<T, kHeadDim, 8 * kHalves>(launch, entry, kv_head, end == entry.last + 1, queries);
    __syncthreads();
    int position[kHalves][2];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = (half * 8 + threadIdx.x % 4 * 2 + i) / group;
        position[half][i] = token < entry.num_rows ? s.positions[entry.row + token] : -1;
      }
    }
    first = begin + warp * kTile;
    if (!is_loaded && first < end) load_tile(0, first);
    is_loaded = false;
#pragma unroll
    for (int i = 1; i < kAhead; ++i) {
      if (first + i * kStride < end) load_tile(i, first + i * kStride);
    }
    Attended<T, kHeadDim, kHalves> attended;
    attended.reset();
    while (first < end) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i, first += kStride) {
        if (first >= end) break;
        const int next = first + kAhead * kStride;
        float score[kHalves][4];
        attended.scores(queries, keys[i], score);
        if (next < end) load(keys[i], launch.attention.k_cache, next);
        int visible[kHalves][2];
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
#pragma unroll
          for (int j = 0; j < 2; ++j) visible[half][j] = position[half][j] + 1 - first;
        }
        attended.soften(score, visible, launch.scale_log2);
        attended.add(score, values[i]);
        if (next < end) load(values[i], launch.attention.v_cache, next);
      }
    }
    attended.share(sums + warp * lines * kHeadDim, best_and_sum[warp], lines);
    __syncthreads();

    for (int item = threadIdx.x; item < lines * (kHeadDim / 4); item += blockDim.x) {
      const int of = item / (kHeadDim / 4), column = item % (kHeadDim / 4) * 4;
      const Line to = Line::of(launch, entry, kv_head, of);
      if (!to.present) continue;
      float best = -INFINITY, sum = 0;
      float4 out = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float2 other = best_and_sum[w][of];
        const Join join = Join::of(best, other.x, launch.scale_log2);
        best = fmaxf(best, other.x);
        sum = join(sum, other.y);
        out = joined(join, out, *reinterpret_cast<const float4*>(sums + (w * lines + of) * kHeadDim + column));
      }
      if (share.parts == 1) {
        store_line(static_cast<T*>(launch.attention.out) + to.head * kHeadDim + column, out, sum);
      } else {
        float* partial = partials_of<S::kPartFloats>(launch, share, kv_head, of, to) + share.part * S::kPartFloats;
        *reinterpret_cast<float4*>(partial + column) = out;
        if (column == 0) *reinterpret_cast<float2*>(partial + kHeadDim) = make_float2(best, sum);
      }
    }
    const Share done = share;
    if (launch.rounds > 1) share = share_of(++round); else share.entry.slot = -1;
    if (done.parts == 1) continue;

    // The last part to arrive joins all parts in order.
    __threadfence();
    __syncthreads();
    int* counter = launch.arrivals + int64_t{done.index} * s.kv_heads + kv_head;
    if (threadIdx.x == 0) is_last = atomicAdd(counter, 1) + 1 == done.parts;
    __syncthreads();
    if (!is_last) continue;
    __threadfence();
    for (int item = threadIdx.x; item < lines * (kHeadDim / 4); item += blockDim.x) {
      const int of = item / (kHeadDim / 4), column = item % (kHeadDim / 4) * 4;
      const Line to = Line::of(launch, done.entry, kv_head, of);
      if (!to.present) continue;
      const float* partials = partials_of<S::kPartFloats>(launch, done, kv_head, of, to);
      float best = -INFINITY, sum = 0;
      float4 out = make_float4(0, 0, 0, 0);
      constexpr int kAhead = 8;  // parts whose loads are under way together
      for (int start = 0; start < done.parts; start += kAhead) {
        float2 others[kAhead];
        float4 values_of[kAhead];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          const float* partial = partials + min(start + j, done.parts - 1) * S::kPartFloats;
          others[j] = __ldcg(reinterpret_cast<const float2*>(partial + kHeadDim));
          values_of[j] = __ldcg(reinterpret_cast<const float4*>(partial + column));
        }
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
          if (start + j >= done.parts) break;
          const Join join = Join::of(best, others[j].x, launch.scale_log2);
          best = fmaxf(best, others[j].x);
          sum = join(sum, others[j].y);
          out = joined(join, out, values_of[j]);
        }
      }
      store_line(static_cast<T*>(launch.attention.out) + to.head * kHeadDim + column, out, sum);
    }
    if (threadIdx.x == 0) *counter = 0;
  }
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

int multiprocessors() { return device_limit<cudaDevAttrMultiProcessorCount>("multiprocessors"); }

// Rows of a chunk go the way of single rows.
bool is_tiled(const CudaAttention& attention) {
  return attention.cu_seqlens_q && attention.batch_invariant && attention.max_rows_per_slot > 1;
}

int round_up(int value, int step) { return (value + step - 1) / step * step; }

// Positions of a part at least: no context has more than kMaxParts parts.
int min_part(const CudaRows& rows, bool batch_invariant) {
  const int share = round_up((rows.table_width * rows.block_size + kMaxParts - 1) / kMaxParts, kStride);
  return std::max(batch_invariant ? kInvariantPart : kStride, share);
}

int max_parts(const CudaRows& rows, bool batch_invariant) {
  const int keys = min_part(rows, batch_invariant);
  return std::max(1, (rows.table_width * rows.block_size + keys - 1) / keys);
}

template <typename T, int kHeadDim, int kHalves>
void launch_kernel(Launch& launch, Stream stream) {
  const CudaRows& s = launch.rows;
  const int at_once = multiprocessors() * kResident<kHeadDim, kHalves>, pairs = launch.entries * s.kv_heads;
  // All blocks at once where rows are few; otherwise enough that the last ones to start matter little. Each row rounds up once.
  const int wanted_blocks = pairs <= at_once / 2 ? at_once - pairs : 2 * at_once;
  launch.keys_per_position = static_cast<float>(s.kv_heads) / wanted_blocks;
  int columns = wanted_blocks / s.kv_heads + launch.entries, rows = 1;
  launch.rounds = 1;
  if (launch.tiled) {
    columns = launch.entries, rows = std::min(launch.max_parts, 8);
    launch.rounds = (launch.max_parts + rows - 1) / rows;
  } else if (launch.attention.batch_invariant) {
    const int all = launch.entries * launch.max_parts;
    columns = std::min(all, 8 * at_once / s.kv_heads + 1);
    launch.rounds = (all + columns - 1) / columns;
  }
  const size_t bytes = size_t{kWarps} * launch.lines * kHeadDim * sizeof(float);
  launch_chained(decode_kernel<T, kHeadDim, kHalves>, dim3(columns * s.kv_heads, rows), kWarps * kWarp, bytes, stream,
                 "paged_attention of single rows", launch);
}

}  // namespace

int64_t attention_partials(const CudaAttention& attention, const CudaRows& rows) {
  const int parts = max_parts(rows, attention.batch_invariant);
  const int places = attention.cu_seqlens_q && !is_tiled(attention) ? rows.slots : rows.rows;
  return parts == 1 ? 1 : int64_t{places} * rows.q_heads * parts * part_floats(rows.head_dim);
}

void launch_decode_attention(Half type, Launch launch, Stream stream) {
  const CudaRows& s = launch.rows;
  const CudaAttention& attention = launch.attention;
  const int group = s.q_heads / s.kv_heads;
  launch.longest = s.table_width * s.block_size;
  launch.min_part = min_part(s, attention.batch_invariant);
  launch.max_parts = max_parts(s, attention.batch_invariant);
  launch.tiled = is_tiled(attention);
  launch.entry_rows = launch.tiled ? kMaxGroup / group : 1;
  launch.lines = launch.entry_rows * group;
  launch.entries = !attention.cu_seqlens_q ? s.rows : s.slots;
  if (launch.tiled) launch.entries = s.rows / launch.entry_rows + std::min(s.slots, s.rows);
  launch.arrivals = arrival_counters(int64_t{launch.entries} * s.kv_heads, stream);
  with_head_dim(type, s.head_dim, [&](auto t, auto dim) {
    using T = decltype(t);
    constexpr int kHeadDim = decltype(dim)::value;
    launch.lines <= 8 ? launch_kernel<T, kHeadDim, 1>(launch, stream) : launch_kernel<T, kHeadDim, 2>(launch, stream);
  });
}

}  // namespace bireme
