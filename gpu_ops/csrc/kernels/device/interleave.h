// Rows as the kernels of matrix products read them: those of a tile side by side.
#pragma once
#include <algorithm>

#include "kernels/device/thread_pool.h"
#include "kernels/device/tile_fma.h"

namespace bireme {
namespace {

// x -> [row tile][in_features][rows of the tile].
inline void interleave(const float* x, int64_t in_features, const EvenSplit& tiles, float* x_tiles) {
  const int64_t grain = std::max<int64_t>(1, 16 * 1024 / in_features / tiles.size(0));
  parallel_for(tiles.parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t rows = tiles.size(tile);
      const float* from = x + tiles.begin(tile) * in_features;
      float* to = x_tiles + tiles.begin(tile) * in_features;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t k = 0; k < in_features; ++k) to[k * rows + r] = from[r * in_features + k];
      }
    }
  });
}

}  // namespace
}  // namespace bireme
