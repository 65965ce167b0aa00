// Attention of single rows: the context is split into parts, a block each, whose warps take tiles in turn.
//
// With batch_invariant parts have one length, so that a row is always split alike, and rows of a chunk go the way of single
// rows: a query tile has 16 lines, a line for each (row of the slot, query head of the group).
#include <algorithm>
#include <map>
#include <mutex>

#include "kernels/device/cuda/chained_launch.cuh"
#include "kernels/attention/cuda/decode_join.cuh"
#include "kernels/attention/cuda/decode_queries.cuh"
#include "kernels/attention/cuda/decode_tile.cuh"
#include "kernels/device/cuda/device_limit.cuh"

namespace bireme {
namespace {

constexpr size_t kStaticShared = 8192;  // of the kernel, at most

// Until the oldest of `stages` tiles under way is there.
__device__ inline void wait_stages(int stages) {
  switch (stages) {
    case 1: return wait_copies<0>();
    case 2: return wait_copies<1>();
    case 3: return wait_copies<2>();
    default: return wait_copies<3>();
  }
}

// Blocks that share a multiprocessor, as many as their copies leave room for: three of 72 KiB where heads are short, two of
// about 100 KiB where they are long.
template <int kHeadDim>
constexpr int kResident = kHeadDim > 64 ? 2 : 3;
// Tiles of a warp that are under way at once.
template <int kHeadDim>
constexpr int kStages = kHeadDim > 80 ? 3 : 2;
constexpr int kMaxStages = 4;

template <typename T, int kHeadDim, int kHalves>
__global__ void __launch_bounds__(kWarps* kWarp, kResident<kHeadDim>) decode_kernel(Launch launch) {
  using S = Shape<T, kHeadDim>;
  using TileOf = Tile<T, kHeadDim>;
  constexpr int kLines = 8 * kHalves;
  // TileOf [kWarps][launch.stages]; when all are done, a warp's sums [lines][head_dim] at the beginning of its tiles.
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ __align__(16) T queries[kLines * S::kLine];
  __shared__ __align__(16) T newest[2][kHeadDim];  // key and value of the row's own position
  __shared__ float2 best_and_sum[kWarps][kLines];
  __shared__ bool is_last;
  const CudaRows& s = launch.rows;
  const int warp = threadIdx.x / kWarp, group = s.q_heads / s.kv_heads, lines = launch.lines;
  const int kv_head = blockIdx.x % s.kv_heads, place = blockIdx.x / s.kv_heads, places = gridDim.x / s.kv_heads;
  TileOf* const tiles = reinterpret_cast<TileOf*>(shared) + warp * launch.stages;
  const auto sums_of = [&](int w) { return reinterpret_cast<float*>(reinterpret_cast<TileOf*>(shared) + w * launch.stages); };

  const SingleRows single_rows(launch);
  const auto share_of = [&](int round) {
    return launch.tiled ? share_of_tile(launch, place, blockIdx.y + round * gridDim.y)
                        : single_rows.share(place + round * places);
  };
  Share share = share_of(0);
  const auto end_of = [](const Share& share) { return min((share.part + 1) * share.keys, share.entry.last + 1); };
  struct Place {
    int64_t offset[S::kRuns];
  };
  const auto place_of = [&](int first) {
    const int32_t* table = s.block_tables + int64_t{share.entry.slot} * s.table_width;
    Place place;
#pragma unroll
    for (int run = 0; run < S::kRuns; ++run) {
      const int at = first + run * kRun;
      place.offset[run] = at < end_of(share) ? offset_of(launch, table, kv_head, at) : -1;
    }
    return place;
  };
  // Begins to copy this warp's tile at `first`; a group of copies each, also where there is nothing left.
  const auto fetch = [&](int stage, int first, const Place& place) {
    if (first < end_of(share)) {
      const T* keys = static_cast<const T*>(launch.attention.k_cache);
      const T* values = static_cast<const T*>(launch.attention.v_cache);
#pragma unroll
      for (int run = 0; run < S::kRuns; ++run) {
        const bool present = place.offset[run] >= 0;
        const int limit = present ? share.entry.last + 1 - first - run * kRun : 0;
        const int64_t offset = present ? place.offset[run] : 0;
        fetch_run<T, kHeadDim>(tiles[stage].keys + run * kRun * S::kLine, keys + offset, limit);
        fetch_run<T, kHeadDim>(tiles[stage].values + run * kRun * S::kLine, values + offset, limit);
      }
    }
    commit_copies();
  };
  const auto fetch_first = [&] {
    const int first = share.part * share.keys + warp * S::kTile;
    // All entries of the table before the first copy: they are one wait.
    Place places[kMaxStages];
#pragma unroll
    for (int stage = 0; stage < kMaxStages; ++stage) {
      if (stage < launch.stages) places[stage] = place_of(first + stage * launch.step);
    }
#pragma unroll
    for (int stage = 0; stage < kMaxStages; ++stage) {
      if (stage < launch.stages) fetch(stage, first + stage * launch.step, places[stage]);
    }
  };

  // Where this kernel alone writes to the cache, older keys do not wait for this step's queries; the newest is put in later.
  bool is_fetched = launch.attention.cos_sin && share.entry.slot >= 0;
  if (is_fetched) fetch_first();
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

  for (int round = 0; share.entry.slot >= 0;) {
    const Entry entry = share.entry;
    const int begin = share.part * share.keys, end = end_of(share);
    const bool writes = launch.attention.cos_sin && end == entry.last + 1;
    if (!is_fetched) fetch_first();
    is_fetched = false;
    prepare_queries<T, kHeadDim, kLines>(launch, entry, kv_head, writes, queries, newest);
    __syncthreads();
    int position[kHalves][2];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = (half * 8 + threadIdx.x % 4 * 2 + i) / group;
        position[half][i] = token >= entry.num_rows ? -1 : launch.tiled ? s.positions[entry.row + token] : entry.last;
      }
    }
    const Queries<T, kHeadDim, kHalves> operands(queries);
    Attended<T, kHeadDim, kHalves> attended;
    attended.reset();
    int stage = 0;
    for (int first = begin + warp * S::kTile; first < end; first += launch.step) {
      wait_stages(launch.stages);
      __syncwarp();
      TileOf& tile = tiles[stage];
      const int next = first + launch.stages * launch.step;
      const Place place = place_of(next);
      if (writes && first + S::kTile > entry.last) {
        const int lane = threadIdx.x % kWarp;
        if (lane < 2 * kHeadDim / kVec) {
          const int part = lane / (kHeadDim / kVec), column = lane % (kHeadDim / kVec) * kVec;
          T* line = (part ? tile.values : tile.keys) + (entry.last - first) * S::kLine;
          store_vec(line + column, load_vec(newest[part] + column));
        }
        __syncwarp();
      }
      typename Attended<T, kHeadDim, kHalves>::Scores score;
      attended.scores(operands, tile.keys, score);
      if (first + S::kTile > entry.last + 1 - entry.num_rows) {
        int visible[kHalves][2];
#pragma unroll
        for (int half = 0; half < kHalves; ++half) {
#pragma unroll
          for (int j = 0; j < 2; ++j) visible[half][j] = position[half][j] + 1 - first;
        }
        attended.hide(score, visible);
      }
      attended.soften(score, launch.scale_log2);
      attended.add(score, tile.values);
      __syncwarp();
      fetch(stage, next, place);
      if (++stage == launch.stages) stage = 0;
    }
    wait_copies<0>();
    __syncwarp();
    attended.share(sums_of(warp), best_and_sum[warp], lines);
    __syncthreads();

    // Four columns of a line each.
    const auto for_items = [&](const Entry& of_entry, const auto& f) {
      for (int item = threadIdx.x; item < lines * (kHeadDim / 4); item += blockDim.x) {
        const int of = item / (kHeadDim / 4);
        const Line to = Line::of(launch, of_entry, kv_head, of);
        if (to.present) f(of, item % (kHeadDim / 4) * 4, to);
      }
    };
    const auto store = [&](const Share& of_share, int of, int column, const Line& to, const Joined& joined) {
      if (of_share.parts == 1) return store_line(static_cast<T*>(launch.attention.out) + to.head * kHeadDim + column, joined);
      float* partials = partials_of<S::kPartFloats>(launch, of_share, kv_head, of, to);
      store_partial<kHeadDim>(partials + of_share.part * S::kPartFloats, column, joined);
    };
    for_items(entry, [&](int of, int column, const Line& to) {
      Joined joined;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float4 part = *reinterpret_cast<const float4*>(sums_of(w) + of * kHeadDim + column);
        joined.add(best_and_sum[w][of], part, launch.scale_log2);
      }
      store(share, of, column, to, joined);
    });
    const Share done = share;
    if (launch.rounds > 1) share = share_of(++round); else share.entry.slot = -1;
    if (done.parts == 1) {
      if (launch.rounds > 1) __syncthreads();
      continue;
    }

    // The last part to arrive joins all parts in order.
    __threadfence();
    __syncthreads();
    int* counter = launch.arrivals + int64_t{done.index} * s.kv_heads + kv_head;
    if (threadIdx.x == 0) is_last = atomicAdd(counter, 1) + 1 == done.parts;
    __syncthreads();
    if (!is_last) continue;
    __threadfence();
    for_items(done.entry, [&](int of, int column, const Line& to) {
      const float* partials = partials_of<S::kPartFloats>(launch, done, kv_head, of, to);
      const auto read = [&](int part, int offset) {
        return __ldcg(reinterpret_cast<const float4*>(partials + part * S::kPartFloats + offset));
      };
      const Joined all = join_partials<kHeadDim, 8>(done.parts, column, launch.scale_log2, read);
      store_line(static_cast<T*>(launch.attention.out) + to.head * kHeadDim + column, all);
    });
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

// Positions that a block's warps take at a time.
int step_of(int head_dim) { return kWarps * (head_dim > 80 ? kTileOf<128> : kTileOf<64>); }

// Positions of a part at least: no context has more than kMaxAttentionParts parts.
int min_part(const CudaRows& rows, bool batch_invariant) {
  const int step = step_of(rows.head_dim), longest = rows.table_width * rows.block_size;
  const int share = round_up((longest + kMaxAttentionParts - 1) / kMaxAttentionParts, step);
  return std::max(batch_invariant ? round_up(kInvariantPartPositions, step) : step, share);
}

int max_parts(const CudaRows& rows, bool batch_invariant) {
  const int keys = min_part(rows, batch_invariant);
  return std::max(1, (rows.table_width * rows.block_size + keys - 1) / keys);
}

template <typename T, int kHeadDim, int kHalves>
void launch_kernel(Launch& launch, Stream stream) {
  const CudaRows& s = launch.rows;
  const auto kernel = decode_kernel<T, kHeadDim, kHalves>;
  const auto bytes = [&] { return size_t{kWarps} * launch.stages * sizeof(Tile<T, kHeadDim>); };
  // Long heads of a small batch: one block a multiprocessor, with as many copies as two. Shared memory for two would take the first
  // cache from the matmuls around this kernel, which read their inputs from it.
  const bool few = launch.entries * s.kv_heads <= multiprocessors();
  const bool alone = kHeadDim > 80 && few && !launch.attention.batch_invariant;
  launch.stages = alone ? kMaxStages : kStages<kHeadDim>;
  while (bytes() + kStaticShared > static_cast<size_t>(shared_limit())) --launch.stages;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes())),
             "attention shared memory");
  const int at_once = multiprocessors() * (alone ? 1 : kResident<kHeadDim>);
  // As many parts as there are blocks at once: then none begins late, and wherever blocks find room first, all have some. Rows
  // that are more than that are one part each, but for the longest.
  launch.most_parts = std::max(at_once / s.kv_heads, launch.entries + launch.entries / 4);
  int columns = launch.most_parts, rows = 1;
  launch.rounds = 1;
  if (launch.tiled) {
    columns = launch.entries, rows = std::min(launch.max_parts, 8);
    launch.rounds = (launch.max_parts + rows - 1) / rows;
  } else if (launch.attention.batch_invariant) {
    const int all = launch.entries * launch.max_parts;
    columns = std::min(all, 8 * at_once / s.kv_heads + 1);
    launch.rounds = (all + columns - 1) / columns;
  }
  launch_chained(kernel, dim3(columns * s.kv_heads, rows), kWarps * kWarp, bytes(), stream, "paged_attention of single rows",
                 launch);
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
  launch.tiled = is_tiled(attention);
  launch.entry_rows = launch.tiled ? kMaxGroup / group : 1;
  launch.lines = launch.entry_rows * group;
  launch.entries = !attention.cu_seqlens_q ? s.rows : s.slots;
  if (launch.tiled) launch.entries = s.rows / launch.entry_rows + std::min(s.slots, s.rows);
  launch.step = step_of(s.head_dim);
  launch.min_part = min_part(s, attention.batch_invariant);
  launch.max_parts = max_parts(s, attention.batch_invariant);
  launch.arrivals = arrival_counters(int64_t{launch.entries} * s.kv_heads, stream);
  with_head_dim(type, s.head_dim, [&](auto t, auto dim) {
    using T = decltype(t);
    constexpr int kHeadDim = decltype(dim)::value;
    launch.lines <= 8 ? launch_kernel<T, kHeadDim, 1>(launch, stream) : launch_kernel<T, kHeadDim, 2>(launch, stream);
  });
}

}  // namespace bireme
