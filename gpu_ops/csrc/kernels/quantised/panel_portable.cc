// Plain C++: the products of every processor.
#include <cmath>

#include "kernels/quantised/half.h"
#include "kernels/quantised/panel_formats.h"

namespace bireme {
namespace {

constexpr int kRows = 2;

// Quants of a record less their zero point, [input / 4][column][input % 4].
template <class F>
void unpack(const uint8_t* quants, int16_t* values) {
  constexpr int zero = F::kHasZero ? 1 << F::kZeroShift : 0;
  if (F::kBits == 4) {
    for (int pair = 0; pair < 4; ++pair) {
      const uint8_t* from = quants + pair * kGroupStride;
      int16_t* to = values + 2 * pair * kGroupStride;
      for (int i = 0; i < kGroupStride; ++i) to[i] = static_cast<int16_t>((from[i] & 15) - zero);
      for (int i = 0; i < kGroupStride; ++i) to[kGroupStride + i] = static_cast<int16_t>((from[i] >> 4) - zero);
    }
  } else {
    for (int i = 0; i < 8 * kGroupStride; ++i) values[i] = static_cast<int16_t>(quants[i] - zero);
  }
}

template <class F, int R>
void panel_tile(const PanelArgs& a) {
  constexpr int columns = kQuantisedColumns;
  float sum[R][columns];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < columns; ++c) sum[r][c] = a.start[r * a.ld_start + c];
  }
  const int32_t* x = a.x;
  const uint8_t* record = a.panel;
  for (int64_t block = 0; block < a.blocks; ++block, x += kInputWords * R, record += record_bytes<F>()) {
    int16_t values[8 * kGroupStride];
    unpack<F>(record + quants_offset<F>(), values);
    for (int r = 0; r < R; ++r) {
      int32_t dot[columns] = {};
      for (int g = 0; g < 8; ++g) {
        int8_t q[4];
        std::memcpy(q, x + g * R + r, sizeof q);
        const int16_t* value = values + g * kGroupStride;
        for (int c = 0; c < columns; ++c) {
          for (int i = 0; i < 4; ++i) dot[c] += value[4 * c + i] * q[i];
        }
      }
      float d, s;
      std::memcpy(&d, x + 8 * R + r, sizeof d);
      std::memcpy(&s, x + 9 * R + r, sizeof s);
      for (int c = 0; c < columns; ++c) {
        sum[r][c] = __builtin_fmaf(static_cast<float>(dot[c]), half_to_float(record + 2 * c) * d, sum[r][c]);
        if (F::kHasMinimum) sum[r][c] = __builtin_fmaf(half_to_float(record + kScaleBytes + 2 * c), s, sum[r][c]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < columns; ++c) a.out[r * a.ld_out + c] = sum[r][c];
  }
}

#define BIREME_TILES(F) {panel_tile<F, 1>, panel_tile<F, 2>}
constexpr PanelKernels kKernels{"portable", kRows, {BIREME_TILES(Q4_0), BIREME_TILES(Q4_1), BIREME_TILES(Q8_0)}};

}  // namespace

const PanelFormat kPanelFormats[kNumPanelFormats] = {
    {BlockType::kQ4_0, 0, 4, 8, 0, record_bytes<Q4_0>()},
    {BlockType::kQ4_1, 1, 4, 0, 1, record_bytes<Q4_1>()},
    {BlockType::kQ8_0, 2, 8, 128, 0, record_bytes<Q8_0>()},
};

const PanelKernels* portable_panel_kernels() { return &kKernels; }

}  // namespace bireme
