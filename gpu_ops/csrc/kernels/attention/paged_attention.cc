// Attention in segments of kSegment cache positions. Each segment of a row gives its own maximum, sum of exponentials and
// weighted sum of values; segments are merged in ascending order. Segment borders are absolute positions and every
// reduction inside one has a fixed order, so a row gets the same bits in a prefill chunk, alone, or after a cache hit, and
// segments of one row may be computed by several threads.
#include "generated/kernel_limits.h"
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/attention/kv_cache.h"
#include "kernels/device/scratch.h"
#include "kernels/device/thread_pool.h"
#include "kernels/device/tile_fma.h"

namespace bireme {
namespace {

constexpr int64_t kSegment = 256;
constexpr int kStride = kSegment + 16;  // of score rows; off a power of two for the cache's sets
constexpr int64_t kPositionsAhead = 32;
constexpr int64_t kGrainFmas = 24 * 1024;
constexpr int64_t kWide = kTileVecs * kLanes;

template <typename Number>
constexpr TileKernels<Number> kScoreWide = tile_kernels<kTileVecs, Interleaved, false, true, Number>();
template <typename Number>
constexpr TileKernels<Number> kScoreNarrow = tile_kernels<1, Interleaved, false, true, Number>();
template <typename Number>
constexpr TileKernels<Number> kValueWide = tile_kernels<kTileVecs, Strided<kStride>, false, true, Number>();
template <typename Number>
constexpr TileKernels<Number> kValueNarrow = tile_kernels<1, Strided<kStride>, false, true, Number>();
template <typename Number>
constexpr TileKernels<Number> kValuePartial = tile_kernels<1, Strided<kStride>, true, true, Number>();

// Query vectors that share cache loads: `heads` heads of one group, of `rows` rows at consecutive positions of one slot.
// Vector r is row r / heads, head r % heads.
struct Tile {
  int64_t row, rows, first_head, heads;
  int64_t position;  // of the first row
  const int32_t* blocks;

  int64_t vectors() const { return rows * heads; }
  int64_t length() const { return position + rows; }  // cache positions that the last row sees
  int64_t segments() const { return (length() + kSegment - 1) / kSegment; }
};

// Softmax state of a tile over some positions: sum 0 means no position yet.
struct State {
  float* peak;  // [vectors]
  float* sum;   // [vectors]
  float* acc;   // [vectors][kMaxHeadDim]

  static int64_t floats(int64_t vectors) { return vectors * (kMaxHeadDim + 2); }
  static State at(float* memory, int64_t vectors) {
    return {memory + vectors * kMaxHeadDim, memory + vectors * (kMaxHeadDim + 1), memory};
  }
};

// `Number` is the type that keys and values are stored in.
template <typename Number>
struct Attention {
  const float* qkv;
  const Number *k_cache, *v_cache;
  float scale;
  AttentionShape shape;
  float* out;

  int64_t group() const { return shape.q_heads / shape.kv_heads; }

  // Scaled query vectors, interleaved: queries[d * vectors + r].
  void load_queries(const Tile& tile, int64_t kv_head, float* queries) const {
    const int64_t width = (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim;
    for (int64_t r = 0; r < tile.vectors(); ++r) {
      const int64_t head = kv_head * group() + tile.first_head + r % tile.heads;
      const float* q = qkv + (tile.row + r / tile.heads) * width + head * shape.head_dim;
      for (int64_t d = 0; d < shape.head_dim; ++d) queries[d * tile.vectors() + r] = q[d] * scale;
    }
  }

  // Where position's entry of a cache begins: k advances by 1 a position inside a block, v by head_dim.
  const Number* key_at(const Tile& tile, int64_t kv_head, int64_t position) const {
    return block_of(k_cache, layout().key_numbers(), tile, kv_head, position) + position % shape.block_size;
  }
  const Number* value_at(const Tile& tile, int64_t kv_head, int64_t position) const {
    return block_of(v_cache, layout().value_numbers(), tile, kv_head, position) + position % shape.block_size * shape.head_dim;
  }
  const Number* block_of(const Number* cache, int64_t numbers, const Tile& tile, int64_t kv_head, int64_t position) const {
    return cache + (tile.blocks[position / shape.block_size] * shape.kv_heads + kv_head) * numbers;
  }
  KvLayout<Number> layout() const { return {shape.head_dim, shape.block_size}; }

  // scores[r][j] = q_r k_{first + j} for j < count, rounded up to full vectors; the padding is whatever the block holds.
  // Blocks lie anywhere in memory, which defeats the hardware's prefetcher; hence `ahead`, here and for the values.
  void score(const Tile& tile, int64_t kv_head, int64_t first, int64_t count, const float* queries, float* scores) const {
    static const float zeros[kWide] = {};
    TileArgsOf<Number> args{};
    args.depth = shape.head_dim;
    args.x = queries;
    args.ldw = shape.block_size;
    args.start = zeros;
    args.ld_out = kStride;
    const auto ahead = [&](int64_t j) {
      const int64_t next = j + kPositionsAhead;
      return next < count ? key_at(tile, kv_head, first + next) : value_at(tile, kv_head, first);
    };
    for (int64_t j = 0; j < count;) {
      const bool wide = kTileVecs == 2 && count - j > kLanes;
      args.w = key_at(tile, kv_head, first + j);
      args.ahead = ahead(j);
      if (wide) {
        // The two vectors may lie in different blocks.
        args.vec_step = key_at(tile, kv_head, first + j + kLanes) - args.w;
        args.ahead_vec_step = ahead(j + kLanes) - args.ahead;
      }
      args.out = scores + j;
      (wide ? kScoreWide<Number> : kScoreNarrow<Number>)[tile.vectors() - 1](args, 0);
      j += wide ? kWide : kLanes;
    }
  }

  // acc[r] += sum over j in [from, to) of weights[r][j] v_{first + j}, for `vectors` rows.
  void add_values(const Tile& tile, int64_t kv_head, int64_t first, int64_t from, int64_t to, const float* weights,
                  int64_t vectors, float* acc) const {
    TileArgsOf<Number> args{};
    args.ldw = shape.head_dim;
    args.ld_start = args.ld_out = kMaxHeadDim;
    while (from < to) {
      const int64_t left_in_block = shape.block_size - (first + from) % shape.block_size;
      args.depth = std::min({left_in_block, kPositionsAhead, to - from});
      args.x = weights + from;
      const Number* values = value_at(tile, kv_head, first + from);
      const int64_t next = from + kPositionsAhead;
      const Number* ahead = next < to ? value_at(tile, kv_head, first + next) : values;
      for (int64_t d = 0; d < shape.head_dim;) {
        const int64_t left = shape.head_dim - d;
        args.w = values + d;
        args.ahead = ahead + d;
        args.start = args.out = acc + d;
        const TileKernels<Number>& kernels = left >= kWide    ? kValueWide<Number>
                                             : left >= kLanes ? kValueNarrow<Number>
                                                              : kValuePartial<Number>;
        kernels[vectors - 1](args, static_cast<int>(left));
        d += left >= kWide ? kWide : kLanes;
      }
      from += args.depth;
    }
  }

  void segment(const Tile& tile, int64_t kv_head, int64_t index, const float* queries, const State& state) const {
    alignas(64) float weights[kTileRows * kStride];
    const int64_t first = index * kSegment, vectors = tile.vectors();
    const int64_t longest = std::min(kSegment, tile.length() - first);
    score(tile, kv_head, first, longest, queries, weights);
    const auto visible = [&](int64_t r) {
      return std::clamp<int64_t>(tile.position + r / tile.heads + 1 - first, 0, kSegment);
    };
    if constexpr (kHasScales<Number>) {
      // q k = scale * (q numbers), and a weight of v one of its numbers: once a position instead of once a number.
      alignas(64) float key_scales[kStride], value_scales[kStride];
      collect_scales(tile, kv_head, first, longest, key_scales, value_scales);
      for (int64_t r = 0; r < vectors; ++r) {
        float* row = weights + r * kStride;
        multiply(row, key_scales, visible(r));
        soften(row, visible(r), &state.peak[r], &state.sum[r]);
        multiply(row, value_scales, visible(r));
      }
    } else {
      for (int64_t r = 0; r < vectors; ++r) soften(weights + r * kStride, visible(r), &state.peak[r], &state.sum[r]);
    }
    std::memset(state.acc, 0, vectors * kMaxHeadDim * sizeof(float));
    // Positions that every row sees, then those that only later rows see: a masked weight of 0 must not meet a value that
    // was never written.
    const int64_t common = visible(0);
    add_values(tile, kv_head, first, 0, common, weights, vectors, state.acc);
    for (int64_t r = tile.heads; r < vectors; ++r) {
      add_values(tile, kv_head, first, common, visible(r), weights + r * kStride, 1, state.acc + r * kMaxHeadDim);
    }
  }

  // Of positions [first, first + count), rounded up to full vectors.
  void collect_scales(const Tile& tile, int64_t kv_head, int64_t first, int64_t count, float* keys, float* values) const {
    const int64_t size = shape.block_size;
    for (int64_t j = 0; j < count; j += kLanes) {
      const int64_t entry = (first + j) % size;
      const float* scales = layout().scales(key_at(tile, kv_head, first + j) - entry) + entry;
      store(keys + j, load(scales));
      store(values + j, load(scales + size));
    }
  }

  // Up to full vectors; what follows row[count - 1] may become anything.
  static void multiply(float* row, const float* by, int64_t count) {
    for (int64_t j = 0; j < count; j += kLanes) store(row + j, load(row + j) * load(by + j));
  }

  // scores[0, count) -> e^(score - peak), their maximum and sum. Lane i sums positions i, i + 16, ...
  static void soften(float* scores, int64_t count, float* peak, float* sum) {
    constexpr float kLowest = -std::numeric_limits<float>::infinity();
    Vec16 top = broadcast(kLowest), total = zero();
    for (int64_t j = 0; j < count; j += kLanes) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, count - j));
      const Vec16 s = load(scores + j);
      top = max(lanes == kLanes ? s : keep_first(s, lanes, broadcast(kLowest)), top);
    }
    *peak = max_lanes(top);
    for (int64_t j = 0; j < count; j += kLanes) {
      const int lanes = static_cast<int>(std::min<int64_t>(kLanes, count - j));
      Vec16 e = exp(load(scores + j) - broadcast(*peak));
      if (lanes < kLanes) e = keep_first(e, lanes, zero());
      store(scores + j, e);
      total = total + e;
    }
    *sum = sum_lanes(total);
  }

  void merge(int64_t vectors, const State& part, const State& total) const {
    for (int64_t r = 0; r < vectors; ++r) {
      if (part.sum[r] == 0.0f) continue;
      const float* from = part.acc + r * kMaxHeadDim;
      float* to = total.acc + r * kMaxHeadDim;
      if (total.sum[r] == 0.0f) {
        total.peak[r] = part.peak[r];
        total.sum[r] = part.sum[r];
        std::memcpy(to, from, kMaxHeadDim * sizeof(float));
        continue;
      }
      const float peak = std::max(total.peak[r], part.peak[r]);
      const Vec16 keep = exp(broadcast(total.peak[r] - peak)), add = exp(broadcast(part.peak[r] - peak));
      for (int64_t d = 0; d < shape.head_dim; d += kLanes) store(to + d, fma(load(to + d), keep, load(from + d) * add));
      float scaled[kLanes];
      store(scaled, fma(broadcast(total.sum[r]), keep, broadcast(part.sum[r]) * add));
      total.sum[r] = scaled[0];
      total.peak[r] = peak;
    }
  }

  void write(const Tile& tile, int64_t kv_head, const State& total) const {
    for (int64_t r = 0; r < tile.vectors(); ++r) {
      const int64_t head = kv_head * group() + tile.first_head + r % tile.heads;
      float* to = out + ((tile.row + r / tile.heads) * shape.q_heads + head) * shape.head_dim;
      const float inverse = 1.0f / total.sum[r];
      for (int64_t d = 0; d < shape.head_dim; ++d) to[d] = total.acc[r * kMaxHeadDim + d] * inverse;
    }
  }

  // All segments of a tile on one thread.
  void whole(const Tile& tile, int64_t kv_head) const {
    alignas(64) float queries[kTileRows * kMaxHeadDim];
    alignas(64) float part_memory[kTileRows * (kMaxHeadDim + 2)], total_memory[kTileRows * (kMaxHeadDim + 2)];
    const int64_t vectors = tile.vectors();
    const State part = State::at(part_memory, vectors), total = State::at(total_memory, vectors);
    std::fill_n(total.sum, vectors, 0.0f);
    load_queries(tile, kv_head, queries);
    for (int64_t index = 0; index < tile.segments(); ++index) {
      segment(tile, kv_head, index, queries, part);
      merge(vectors, part, total);
    }
    write(tile, kv_head, total);
  }

  // Few tiles with long histories: the segments of a tile are spread over threads too.
  void split(const std::vector<Tile>& tiles, int64_t grain) const {
    struct Part {
      const Tile* tile;
      int64_t kv_head, index;
      State state;
    };
    thread_local Scratch scratch;
    int64_t floats = 0;
    for (const Tile& tile : tiles) floats += shape.kv_heads * tile.segments() * State::floats(tile.vectors());
    float* memory = scratch.get(floats);
    std::vector<Part> parts;
    for (const Tile& tile : tiles) {
      for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
        for (int64_t index = 0; index < tile.segments(); ++index, memory += State::floats(tile.vectors())) {
          parts.push_back({&tile, kv_head, index, State::at(memory, tile.vectors())});
        }
      }
    }
    parallel_for(static_cast<int64_t>(parts.size()), grain, [&](int64_t begin, int64_t end) {
      alignas(64) float queries[kTileRows * kMaxHeadDim];
      for (int64_t i = begin; i < end; ++i) {
        load_queries(*parts[i].tile, parts[i].kv_head, queries);
        segment(*parts[i].tile, parts[i].kv_head, parts[i].index, queries, parts[i].state);
      }
    });
    alignas(64) float total_memory[kTileRows * (kMaxHeadDim + 2)];
    for (size_t i = 0; i < parts.size(); ++i) {
      const int64_t vectors = parts[i].tile->vectors();
      const State total = State::at(total_memory, vectors);
      if (parts[i].index == 0) std::fill_n(total.sum, vectors, 0.0f);
      merge(vectors, parts[i].state, total);
      if (parts[i].index + 1 == parts[i].tile->segments()) write(*parts[i].tile, parts[i].kv_head, total);
    }
  }
};

RowFault find_fault(const int32_t* block_table, int64_t row, int64_t position, const AttentionShape& shape) {
  if (position < 0 || position / shape.block_size >= shape.table_width) return {row, "positions: beyond block_tables"};
  for (int64_t i = 0; i <= position / shape.block_size; ++i) {
    if (block_table[i] < 0 || block_table[i] >= shape.blocks) return {row, "block_tables: no block for a position"};
  }
  return {};
}

template <typename Number>
RowFault attend(const Attention<Number>& attention, const int32_t* block_tables, const int32_t* positions,
                const int32_t* batch_ids) {
  const AttentionShape& shape = attention.shape;
  float* out = attention.out;
  const EvenSplit heads(attention.group(), kTileRows);
  const int64_t most_rows = heads.parts > 1 ? 1 : kTileRows / attention.group();
  std::vector<Tile> tiles;
  int64_t segments = 0, fmas = 0;
  for (int64_t row = 0; row < shape.rows;) {
    const int32_t slot = batch_ids[row];
    if (slot < 0) {
      std::memset(out + row * shape.q_heads * shape.head_dim, 0, shape.q_heads * shape.head_dim * sizeof(float));
      ++row;
      continue;
    }
    if (slot >= shape.slots) return {row, "batch_id_per_token: slot beyond block_tables"};
    int64_t rows = 1;
    while (rows < most_rows && row + rows < shape.rows && batch_ids[row + rows] == slot &&
           positions[row + rows] == positions[row] + rows) {
      ++rows;
    }
    const int32_t* blocks = block_tables + slot * shape.table_width;
    const RowFault fault = find_fault(blocks, row + rows - 1, positions[row] + rows - 1, shape);
    if (positions[row] < 0) return {row, "positions: negative"};
    if (fault.row >= 0) return fault;
    for (int64_t part = 0; part < heads.parts; ++part) {
      tiles.push_back({row, rows, heads.begin(part), heads.size(part), positions[row], blocks});
      segments += tiles.back().segments();
    }
    fmas += 2 * rows * (positions[row] + rows) * shape.q_heads * shape.head_dim;
    row += rows;
  }
  const int64_t units = static_cast<int64_t>(tiles.size()) * shape.kv_heads;
  if (units == 0) return {};
  if (num_threads() > 1 && units < 4 * num_threads() && segments > static_cast<int64_t>(tiles.size()) && fmas > kGrainFmas) {
    attention.split(tiles, std::max<int64_t>(1, kGrainFmas * segments * shape.kv_heads / fmas));
    return {};
  }
  parallel_for(units, std::max<int64_t>(1, kGrainFmas * units / fmas), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // Later rows see more positions: they come first, so that short tasks fill the end.
      const int64_t unit = units - 1 - i;
      attention.whole(tiles[unit / shape.kv_heads], unit % shape.kv_heads);
    }
  });
  return {};
}

}  // namespace

RowFault paged_attention_cpu(const float* qkv, const KvCache& cache, const int32_t* block_tables, const int32_t* positions,
                             const int32_t* batch_ids, float scale, const AttentionShape& shape, float* out) {
  return with_kv_number(cache.type, [&](auto number) {
    using Number = decltype(number);
    const Attention<Number> attention{qkv, static_cast<const Number*>(cache.k), static_cast<const Number*>(cache.v), scale,
                                      shape, out};
    return attend(attention, block_tables, positions, batch_ids);
  });
}

}  // namespace bireme
