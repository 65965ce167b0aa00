#include "kernels/linear/linear.h"

#include <algorithm>
#include <cstring>

#include "kernels/device/scratch.h"
#include "kernels/device/thread_pool.h"
#include "kernels/device/interleave.h"
#include "kernels/device/tile_fma.h"
#include "kernels/linear/panel_edge.h"

namespace bireme {
namespace {

// A block of depth: its weights for one panel come from the L1 or L2 cache for every row tile after the first.
constexpr int64_t kDepth = 384;
constexpr int64_t kGroupPanels = 4;
constexpr int64_t kGroupTiles = 8;
// With this many row tiles or fewer the op is bound by reading weights, and a task is a run of whole panels.
constexpr int64_t kStreamTiles = 4;
// Weight floats worth handing to another thread: a few microseconds of reading.
constexpr int64_t kStreamGrain = 16 * 1024;
// 6 KiB ahead in the panel's stream covers the memory's latency with up to 12 rows; less starves them.
constexpr int64_t kPrefetchFloats = 48 * kPanelColumns;

constexpr TileKernels<> kKernels = tile_kernels<kTileVecs, Interleaved, false, true>();

struct Product {
  const float* x_tiles;  // [row tile][in_features][rows of the tile]
  const float* packed;
  const float* bias;
  float* y;
  int64_t in_features, out_features;
  EvenSplit tiles, depths;

  // One depth block of one row tile times one panel, added to y.
  void panel_block(int64_t depth, int64_t tile, int64_t panel) const {
    const int64_t column = panel * kPanelColumns, columns = std::min(kPanelColumns, out_features - column);
    const int64_t row = tiles.begin(tile), rows = tiles.size(tile);
    float* out = y + row * out_features + column;
    TileArgs args{};
    args.depth = depths.size(depth);
    args.x = x_tiles + row * in_features + depths.begin(depth) * rows;
    args.w = packed + (panel * in_features + depths.begin(depth)) * kPanelColumns;
    args.ldw = kPanelColumns;
    args.ahead = args.w + kPrefetchFloats;
    over_panel<kPanelColumns, kTileRows>(
        out, out_features, rows, columns, depth > 0, bias ? bias + column : nullptr,
        [&](const float* start, int64_t ld_start, float* to, int64_t ld_to) {
          args.start = start;
          args.ld_start = ld_start;
          args.out = to;
          args.ld_out = ld_to;
          run(args, rows);
        });
  }

 private:
  void run(TileArgs args, int64_t rows) const {
    for (int64_t column = 0; column < kPanelColumns; column += kTileVecs * kLanes) {
      kKernels[rows - 1](args, 0);
      args.w += kTileVecs * kLanes;
      args.ahead += kTileVecs * kLanes;
      args.start += kTileVecs * kLanes;
      args.out += kTileVecs * kLanes;
    }
  }
};

}  // namespace

void pack_weight_cpu(const float* w, int64_t out_features, int64_t in_features, float* packed) {
  constexpr int64_t kBlock = 16;  // in k: whole cache lines of w
  parallel_for(panel_count(out_features), 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t column = panel * kPanelColumns, columns = std::min(kPanelColumns, out_features - column);
      float* to = packed + panel * in_features * kPanelColumns;
      if (columns < kPanelColumns) std::memset(to, 0, in_features * kPanelColumns * sizeof(float));
      for (int64_t k0 = 0; k0 < in_features; k0 += kBlock) {
        const int64_t k1 = std::min(k0 + kBlock, in_features);
        for (int64_t c = 0; c < columns; ++c) {
          const float* from = w + (column + c) * in_features;
          for (int64_t k = k0; k < k1; ++k) to[k * kPanelColumns + c] = from[k];
        }
      }
    }
  });
}

void linear_cpu(const float* x, int64_t rows, int64_t in_features, const float* packed, int64_t out_features,
                const float* bias, float* y) {
  if (rows == 0) return;
  thread_local Scratch scratch;
  const EvenSplit tiles(rows, kTileRows), depths(in_features, kDepth);
  const float* x_tiles = x;
  if (rows > 1) {
    float* interleaved = scratch.get(rows * in_features);
    interleave(x, in_features, tiles, interleaved);
    x_tiles = interleaved;
  }
  const Product product{x_tiles, packed, bias, y, in_features, out_features, tiles, depths};
  const int64_t panels = panel_count(out_features);
  if (tiles.parts <= kStreamTiles) {
    const int64_t grain = std::max<int64_t>(1, kStreamGrain / (in_features * kPanelColumns * tiles.parts));
    parallel_for(panels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t depth = 0; depth < depths.parts; ++depth) {
          for (int64_t tile = 0; tile < tiles.parts; ++tile) product.panel_block(depth, tile, panel);
        }
      }
    });
    return;
  }
  const EvenSplit row_groups(tiles.parts, kGroupTiles), panel_groups(panels, kGroupPanels);
  parallel_for(row_groups.parts * panel_groups.parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t rg = task % row_groups.parts, pg = task / row_groups.parts;
      for (int64_t depth = 0; depth < depths.parts; ++depth) {
        for (int64_t panel = panel_groups.begin(pg); panel < panel_groups.begin(pg + 1); ++panel) {
          for (int64_t tile = row_groups.begin(rg); tile < row_groups.begin(rg + 1); ++tile) {
            product.panel_block(depth, tile, panel);
          }
        }
      }
    }
  });
}

void embedding_packed_cpu(const float* packed, const int64_t* ids, int64_t rows, int64_t vocab, int64_t hidden, float* out) {
  // Every element of a row lies in a cache line of its own, so a row costs microseconds.
  parallel_for(rows, 4, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t id = ids[t];
      float* to = out + t * hidden;
      if (id < 0 || id >= vocab) {
        std::memset(to, 0, hidden * sizeof(float));
        continue;
      }
      const float* from = packed + id / kPanelColumns * hidden * kPanelColumns + id % kPanelColumns;
      for (int64_t h = 0; h < hidden; ++h) to[h] = from[h * kPanelColumns];
    }
  });
}

void embedding_table_cpu(const float* table, const int64_t* ids, int64_t rows, int64_t vocab, int64_t hidden, float* out) {
  parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t id = ids[t];
      if (id < 0 || id >= vocab) {
        std::memset(out + t * hidden, 0, hidden * sizeof(float));
      } else {
        std::memcpy(out + t * hidden, table + id * hidden, hidden * sizeof(float));
      }
    }
  });
}

}  // namespace bireme
