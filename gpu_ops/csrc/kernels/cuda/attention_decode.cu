// Attention of single rows: the context is split into parts, a block each, whose four warps take tiles of 16 positions in turn.
// Keys and values go from memory to the registers of the tensor cores without a detour through shared memory, so that many
// loads are under way at once. Every block works out for itself what its share is: how long the contexts are is known on the
// device alone.
//
// With batch_invariant parts have one length, so that a row is always split alike, and rows of a chunk go the way of single
// rows: a query tile has 16 lines, a line for each (row of the slot, query head of the group).
#include <algorithm>
#include <map>
#include <mutex>

#include "attention_launch.cuh"
#include "chained_launch.cuh"
#include "mma.cuh"
#include "rotary.cuh"

namespace bireme {
namespace {

constexpr int kWarps = 4;
constexpr int kTile = 16;         // positions that a warp takes at a time; a cache block holds a multiple of it
constexpr int kMaxParts = 128;
constexpr int kStride = kWarps * kTile;
constexpr int kInvariantPart = 128;

// Rows of one slot that a block computes together, and the context they see.
struct Entry {
  int slot, row, num_rows, last;  // last: position of the last row; slot is -1 where there is nothing to compute
};

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

// What a block computes: part number `part` of the `parts` of an entry, each of `keys` positions.
struct Share {
  Entry entry;
  int index, part, parts, keys;  // index: of the entry, names its counter of arrivals
};

// Row `i` where every row is single; with cu_seqlens_q the only row of slot `i`.
__device__ inline Entry single_row(const Launch& launch, int i) {
  const CudaRows& s = launch.rows;
  Entry entry{-1, i, 1, -1};
  if (launch.attention.cu_seqlens_q) {
    entry.row = launch.attention.cu_seqlens_q[i];
    if (launch.attention.cu_seqlens_q[i + 1] != entry.row + 1 || entry.row >= s.rows) return entry;
  }
  entry.slot = s.batch_ids[entry.row];
  entry.last = s.positions[entry.row];
  const int limit = launch.attention.cos_sin ? min(launch.attention.max_positions, launch.longest) : launch.longest;
  if (entry.slot >= s.slots || entry.last < 0 || entry.last >= limit) entry.slot = -1;
  return entry;
}

// The single rows of a launch, in rounds of a warp; those of the first round are kept.
class SingleRows {
 public:
  __device__ explicit SingleRows(const Launch& launch) : launch_(launch), first_(row_of(0)) {
    length_ = launch.min_part;
    if (launch.attention.batch_invariant) return;
    int total = 0;
    for (int i = 0; i < launch.entries; i += kWarp) total += of_lane(i).last + 1;
    if (launch.entries > 1) {
      for (int offset = kWarp / 2; offset; offset /= 2) total += __shfl_xor_sync(kAllLanes, total, offset);
    }
    // All contexts together make about `wanted_blocks` parts.
    const int share = __float2int_ru(static_cast<float>(total) * launch.keys_per_position);
    length_ = max(launch.min_part, (share + kStride - 1) / kStride * kStride);
  }

  // Share number `wanted` of all parts, counted row by row; its slot is -1 beyond the last.
  __device__ Share share(int wanted) const {
    if (launch_.entries == 1) {
      Share only{first_, 0, wanted, first_.last / length_ + 1, length_};
      if (wanted >= only.parts) only.entry.slot = -1;
      return only;
    }
    for (int i = 0; i < launch_.entries; i += kWarp) {
      const Entry entry = of_lane(i);
      const int parts = entry.slot < 0 ? 0 : entry.last / length_ + 1, up_to = warp_prefix(parts);
      const unsigned hit = __ballot_sync(kAllLanes, wanted < up_to);
      if (hit) {
        const int source = __ffs(hit) - 1;
        const auto of_source = [&](int value) { return __shfl_sync(kAllLanes, value, source); };
        Share share{{of_source(entry.slot), of_source(entry.row), 1, of_source(entry.last)}, i + source,
                    wanted - of_source(up_to - parts), of_source(parts), length_};
        if (!launch_.attention.batch_invariant) {
          // Parts of a row are equally long.
          share.keys = (share.entry.last / share.parts + kStride) / kStride * kStride;
          share.parts = share.entry.last / share.keys + 1;
          if (share.part >= share.parts) share.entry.slot = -1;
        }
        return share;
      }
      wanted -= __shfl_sync(kAllLanes, up_to, kWarp - 1);
    }
    return {{-1, 0, 0, -1}, 0, 0, 0, length_};
  }

 private:
  __device__ Entry of_lane(int start) const { return start == 0 ? first_ : row_of(start); }
  __device__ Entry row_of(int start) const {
    // A lone row is known to all lanes.
    const int i = launch_.entries == 1 ? 0 : start + threadIdx.x % kWarp;
    Entry entry{-1, 0, 1, -1};
    if (i < launch_.entries && !launch_.tiled) entry = single_row(launch_, i);
    if (entry.slot < 0) entry.last = -1;
    return entry;
  }

  const Launch& launch_;
  Entry first_;
  int length_;  // positions of a part, a multiple of kStride
};

// Partial results of a query head: a place a row where rows share entries, else a place an entry, so that a step of long
// prompts takes no more than its slots need.
template <int kPartFloats>
__device__ inline float* partials_of(const Launch& launch, const Share& share, int kv_head, int line, const Line& to) {
  const int64_t of_entry = (int64_t{share.index} * launch.rows.kv_heads + kv_head) * launch.lines + line;
  return launch.attention.partials + (launch.tiled ? to.head : of_entry) * launch.max_parts * kPartFloats;
}

// With batch_invariant, part `part` of tile number `index` of the slots' rows.
__device__ inline Share share_of_tile(const Launch& launch, int index, int part) {
  const CudaRows& s = launch.rows;
  const SlotTile tile = SlotTile::find(launch, index, launch.entry_rows, 1);
  Share share{{tile.slot, tile.row, tile.num_rows, -1}, index, part, 0, launch.min_part};
  if (tile.slot < 0) return share;
  share.entry.slot = s.batch_ids[tile.row];
  share.entry.last = s.positions[tile.row + tile.num_rows - 1];
  if (share.entry.slot >= s.slots || share.entry.last < 0 || share.entry.last >= launch.longest) share.entry.slot = -1;
  share.parts = share.entry.last / share.keys + 1;
  if (part >= share.parts) share.entry.slot = -1;
  return share;
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

int multiprocessors() {
  static std::mutex mutex;
  static std::map<int, int> known;
  const int device = current_device();
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [found, is_new] = known.try_emplace(device, 0);
  if (is_new) check_cuda(cudaDeviceGetAttribute(&found->second, cudaDevAttrMultiProcessorCount, device), "multiprocessors");
  return found->second;
}

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
