// The last panel of a product has more columns than y: it is computed aside.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

namespace bireme {
namespace {

// Calls run(start, ld_start, out, ld_out) for `rows` rows and a whole panel of Width columns, of which y has `columns` from `out`
// on. The sums start from y's own where `begun`, else from `bias` (of the panel's first column) or 0.
template <int64_t Width, int64_t MaxRows, typename Run>
inline __attribute__((always_inline)) void over_panel(float* out, int64_t ld_out, int64_t rows, int64_t columns, bool begun,
                                                      const float* bias, Run&& run) {
  static constexpr float kZeros[Width] = {};
  if (columns >= Width) {
    run(begun ? out : bias ? bias : kZeros, begun ? ld_out : 0, out, ld_out);
    return;
  }
  alignas(64) float edge[MaxRows * Width] = {};
  if (begun || bias) {
    for (int64_t r = 0; r < rows; ++r) {
      std::memcpy(edge + r * Width, begun ? out + r * ld_out : bias, columns * sizeof(float));
    }
  }
  run(edge, Width, edge, Width);
  for (int64_t r = 0; r < rows; ++r) std::memcpy(out + r * ld_out, edge + r * Width, columns * sizeof(float));
}

}  // namespace
}  // namespace bireme
