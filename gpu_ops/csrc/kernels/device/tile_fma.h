// The inner loop of every matrix product: a register tile of rows by columns, summed over the depth in ascending order
// with one fused multiply-add per element and step.
//
// The sum of an output element is one sequential chain whatever the tile's size, so results do not depend on how rows and
// columns were cut into tiles. A chain may be cut in depth: float32 survives being stored and loaded again.
#pragma once
#include <array>
#include <utility>

#include "kernels/device/vec16.h"

namespace bireme {
namespace {

// `Stored` is the type of w's numbers in memory; in registers they are floats.
template <typename Stored>
struct TileArgsOf {
  int64_t depth;
  const float* x;  // element (row, k), laid out as the kernel's Layout says
  const Stored* w;  // w[k * ldw + vector * vec_step + lane]
  int64_t ldw;
  int64_t vec_step = kLanes;
  const float* start;  // what the sums start from: start[row * ld_start + column]; ld_start 0 repeats one row
  int64_t ld_start;
  float* out;  // out[row * ld_out + column]
  int64_t ld_out;
  const Stored* ahead;  // prefetched in the same steps as w is read; only by kernels with Prefetch; may lie anywhere
  int64_t ahead_vec_step = kLanes;
};
using TileArgs = TileArgsOf<float>;

// x as packed rows, x[k * rows + row]: one stream, which the hardware prefetches.
struct Interleaved {
  static constexpr int row_stride() { return 1; }
  static constexpr int step(int rows) { return rows; }
};

// x as plain rows, x[row * Stride + k].
template <int Stride>
struct Strided {
  static constexpr int row_stride() { return Stride; }
  static constexpr int step(int) { return 1; }
};

// The columns are Vecs full vectors, or with `Partial` the first `lanes` of one; start and out are always full vectors.
template <int Rows, int Vecs, typename Layout, bool Partial, bool Prefetch, typename Stored>
void tile_fma(const TileArgsOf<Stored>& a, int lanes) {
  Vec16 sum[Rows][Vecs];
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vecs; ++v) sum[r][v] = load(a.start + r * a.ld_start + v * kLanes);
  }
  const Stored* w = a.w;
  const float* x = a.x;
  const Stored* ahead = a.ahead;
  for (int64_t k = 0; k < a.depth; ++k, w += a.ldw, x += Layout::step(Rows)) {
    if (Prefetch) {
      for (int v = 0; v < Vecs; ++v) __builtin_prefetch(ahead + v * a.ahead_vec_step);
      ahead += a.ldw;
    }
    Vec16 column[Vecs];
    for (int v = 0; v < Vecs; ++v) column[v] = Partial ? load_first(w, lanes) : load(w + v * a.vec_step);
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r) {
      const Vec16 value = broadcast(x[r * Layout::row_stride()]);
      for (int v = 0; v < Vecs; ++v) sum[r][v] = fma(value, column[v], sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vecs; ++v) store(a.out + r * a.ld_out + v * kLanes, sum[r][v]);
  }
}

template <typename Stored>
using TileKernel = void (*)(const TileArgsOf<Stored>&, int lanes);
template <typename Stored = float>
using TileKernels = std::array<TileKernel<Stored>, kTileRows>;  // [rows - 1]

template <int Vecs, typename Layout, bool Partial, bool Prefetch, typename Stored, size_t... Row>
constexpr TileKernels<Stored> tile_kernels_of(std::index_sequence<Row...>) {
  return {tile_fma<static_cast<int>(Row) + 1, Vecs, Layout, Partial, Prefetch, Stored>...};
}

template <int Vecs, typename Layout, bool Partial, bool Prefetch, typename Stored = float>
constexpr TileKernels<Stored> tile_kernels() {
  return tile_kernels_of<Vecs, Layout, Partial, Prefetch, Stored>(std::make_index_sequence<kTileRows>());
}

// How `count` things are cut into the fewest parts of at most `most`, as evenly as possible.
struct EvenSplit {
  EvenSplit(int64_t count, int64_t most) : count(count), parts((count + most - 1) / most) {}
  int64_t begin(int64_t part) const { return count * part / parts; }
  int64_t size(int64_t part) const { return begin(part + 1) - begin(part); }
  int64_t count, parts;
};

}  // namespace
}  // namespace bireme
