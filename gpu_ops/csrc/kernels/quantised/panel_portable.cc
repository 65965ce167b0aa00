// Plain C++: the products of every processor.
#include <cmath>

#include "kernels/quantised/half.h"
#include "kernels/quantised/panel_formats.h"

namespace bireme {
namespace {

constexpr int kRows = 2;

template <class F>
int quant_of(int bits) {
  return F::kIsCoded ? kCodes[bits] : bits;
}

// Quants of a block less their zero point, [input / 4][column][input % 4].
template <class F>
void unpack(const uint8_t* quants, int16_t* values) {
  constexpr int zero = F::kHasZero ? 1 << F::kZeroShift : 0;
  if (F::kBits != 8) {
    for (int pair = 0; pair < 4; ++pair) {
      const uint8_t* from = quants + pair * kGroupStride;
      int16_t* to = values + 2 * pair * kGroupStride;
      for (int i = 0; i < kGroupStride; ++i) to[i] = static_cast<int16_t>(quant_of<F>(from[i] & 15) - zero);
      for (int i = 0; i < kGroupStride; ++i) to[kGroupStride + i] = static_cast<int16_t>(quant_of<F>(from[i] >> 4) - zero);
    }
    if (F::kBits == 5) {
      const uint8_t* high = quants + 4 * kGroupStride;
      for (int g = 0; g < 8; ++g) {
        for (int i = 0; i < kGroupStride; ++i) {
          values[g * kGroupStride + i] = static_cast<int16_t>(values[g * kGroupStride + i] + (high[i] >> g & 1) * 16);
        }
      }
    }
    if (F::kBits == 6) {
      for (int g = 0; g < 8; ++g) {
        const uint8_t* high = quants + (4 + g / 4) * kGroupStride;
        for (int i = 0; i < kGroupStride; ++i) {
          values[g * kGroupStride + i] = static_cast<int16_t>(values[g * kGroupStride + i] + (high[i] >> g % 4 * 2 & 3) * 16);
        }
      }
    }
  } else {
    for (int i = 0; i < 8 * kGroupStride; ++i) values[i] = static_cast<int16_t>(quants[i] - zero);
  }
}

template <class F, int R>
void dense_tile(const PanelArgs& a) {
  constexpr int columns = kQuantisedColumns;
  float sum[R][columns];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < columns; ++c) sum[r][c] = a.start[r * a.ld_start + c];
  }
  const int32_t* x = a.x;
  const uint8_t* from = a.panel;
  for (int64_t k = 0; k < a.blocks * kBlockInputs; ++k, x += R, from += 2 * columns) {
    float value[columns];
    for (int c = 0; c < columns; ++c) {
      value[c] = (F::kIsBfloat ? bfloat_to_float(from + 2 * c) : half_to_float(from + 2 * c)) * a.factor;
    }
    for (int r = 0; r < R; ++r) {
      float input;
      std::memcpy(&input, x + r, sizeof input);
      for (int c = 0; c < columns; ++c) sum[r][c] = __builtin_fmaf(input, value[c], sum[r][c]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < columns; ++c) a.out[r * a.ld_out + c] = sum[r][c];
  }
}

template <class F, int R>
void panel_tile(const PanelArgs& a) {
  if constexpr (F::kIsDense) return dense_tile<F, R>(a);
  constexpr int columns = kQuantisedColumns;
  float sum[R][columns];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < columns; ++c) sum[r][c] = a.start[r * a.ld_start + c];
  }
  const int32_t* x = a.x;
  const uint8_t *head = a.panel, *at = a.panel;
  for (int64_t block = 0; block < a.blocks; ++block, x += kInputWords * R, at += F::kBlockBytes) {
    if (block % F::kRecordBlocks == 0) {
      head = at;
      at += F::kHeadBytes;
    }
    int16_t values[8 * kGroupStride];
    float scale[columns], late_scale[columns], minimum[columns];
    for (int c = 0; c < columns; ++c) {
      scale[c] = half_to_float(head + 2 * c);
      if (F::kHasMinimum) minimum[c] = half_to_float(head + kScaleBytes + 2 * c);
      if (F::kHasHalves) {
        late_scale[c] = scale[c] * static_cast<int8_t>(at[32 + c]);
        scale[c] *= static_cast<int8_t>(at[c]);
      } else if (F::kHasFactors) {
        scale[c] *= at[c];
        minimum[c] *= at[32 + c];
      }
    }
    unpack<F>(at + F::kQuantsOffset, values);
    for (int r = 0; r < R; ++r) {
      int32_t dot[columns] = {}, first_dot[columns] = {};
      for (int g = 0; g < 8; ++g) {
        int8_t q[4];
        std::memcpy(q, x + g * R + r, sizeof q);
        const int16_t* value = values + g * kGroupStride;
        for (int c = 0; c < columns; ++c) {
          for (int i = 0; i < 4; ++i) dot[c] += value[4 * c + i] * q[i];
        }
        if (F::kHasHalves && g == 3) {
          std::memcpy(first_dot, dot, sizeof dot);
          std::memset(dot, 0, sizeof dot);
        }
      }
      float d, s;
      std::memcpy(&d, x + 8 * R + r, sizeof d);
      std::memcpy(&s, x + 9 * R + r, sizeof s);
      for (int c = 0; c < columns; ++c) {
        if (F::kHasHalves) sum[r][c] = __builtin_fmaf(static_cast<float>(first_dot[c]), scale[c] * d, sum[r][c]);
        sum[r][c] = __builtin_fmaf(static_cast<float>(dot[c]), (F::kHasHalves ? late_scale : scale)[c] * d, sum[r][c]);
        if (F::kHasMinimum) sum[r][c] = __builtin_fmaf(minimum[c], s, sum[r][c]);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < columns; ++c) a.out[r * a.ld_out + c] = sum[r][c];
  }
}

#define BIREME_TILES(F) {panel_tile<F, 1>, panel_tile<F, 2>}
constexpr PanelKernels kKernels{"portable", kRows, {BIREME_FORMATS(BIREME_TILES)}};

template <class F>
constexpr PanelFormat format_of(BlockType type, int32_t index) {
  return {type,           index,         F::kBits,      F::kHasZero ? 1 << F::kZeroShift : 0, F::kHasMinimum, F::kHasFactors,
          F::kIsCoded,    F::kIsBfloat,  F::kHeadBytes, F::kRecordBlocks,                     F::kBlockBytes, F::kQuantsOffset};
}

}  // namespace

const PanelFormat kPanelFormats[kNumPanelFormats] = {
    format_of<Q4_0>(BlockType::kQ4_0, 0),      format_of<Q4_1>(BlockType::kQ4_1, 1), format_of<Q5_0>(BlockType::kQ5_0, 2),
    format_of<Q5_1>(BlockType::kQ5_1, 3),      format_of<Q8_0>(BlockType::kQ8_0, 4), format_of<Q4_K>(BlockType::kQ4_K, 5),
    format_of<Q5_K>(BlockType::kQ5_K, 6),      format_of<Q6_K>(BlockType::kQ6_K, 7), format_of<IQ4_NL>(BlockType::kIQ4_NL, 8),
    format_of<F16>(BlockType::kF16, 9),        format_of<BF16>(BlockType::kBF16, 10),
};

const PanelKernels* portable_panel_kernels() { return &kKernels; }

}  // namespace bireme
