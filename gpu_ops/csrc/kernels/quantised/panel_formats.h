// What a kernel knows of a format when it is compiled.
#pragma once
#include "kernels/quantised/panel_kernels.h"

namespace bireme {
namespace {

constexpr int kScaleBytes = 64;   // of a record: 32 float16
constexpr int kGroupStride = 128;  // of 32 columns, 4 bytes each

template <int Bits, int ZeroShift, bool Minimum, bool Factors, bool Coded = false>
struct Format {
  static constexpr bool kIsDense = false, kIsBfloat = false;
  static constexpr int kBits = Bits, kZeroShift = ZeroShift;
  // Factors that are not of scale and minimum are of the scale, signed, one for each half of the inputs.
  static constexpr bool kHasHalves = Factors && !Minimum;
  static constexpr bool kHasZero = ZeroShift > 0, kHasMinimum = Minimum, kHasFactors = Factors;
  // A quant stands for a number of kCodes.
  static constexpr bool kIsCoded = Coded;
  static constexpr int kHeadBytes = Minimum ? 2 * kScaleBytes : kScaleBytes;
  static constexpr int kRecordBlocks = Factors ? 8 : 1;
  static constexpr int kQuantsOffset = Factors ? 64 : 0;                   // of a block
  static constexpr int kHighOffset = kQuantsOffset + 4 * kGroupStride;     // of the bits above four
  static constexpr int kBlockBytes = kQuantsOffset + Bits * kGroupStride;  // of 32 inputs
};
using Q4_0 = Format<4, 3, false, false>;
using Q4_1 = Format<4, 0, true, false>;
using Q5_0 = Format<5, 4, false, false>;
using Q5_1 = Format<5, 0, true, false>;
using Q8_0 = Format<8, 7, false, false>;
using Q4_K = Format<4, 0, true, true>;
using Q5_K = Format<5, 0, true, true>;
using Q6_K = Format<6, 5, false, true>;
using IQ4_NL = Format<4, 7, false, false, true>;

// Numbers of 16 bits, whose products are those of floats.
template <bool Bfloat>
struct Numbers {
  static constexpr bool kIsDense = true, kIsBfloat = Bfloat;
  static constexpr int kBits = 16, kZeroShift = 0;
  static constexpr bool kHasHalves = false, kHasZero = false, kHasMinimum = false, kHasFactors = false, kIsCoded = false;
  static constexpr int kHeadBytes = 0, kRecordBlocks = 1, kQuantsOffset = 0, kHighOffset = 0;
  static constexpr int kBlockBytes = 16 * kGroupStride;
};
using F16 = Numbers<false>;
using BF16 = Numbers<true>;

// ggml's table of IQ4_NL, with the zero point 128.
alignas(16) constexpr uint8_t kCodes[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

// In the order of PanelKernels::kernels.
#define BIREME_FORMATS(X) X(Q4_0), X(Q4_1), X(Q5_0), X(Q5_1), X(Q8_0), X(Q4_K), X(Q5_K), X(Q6_K), X(IQ4_NL), X(F16), X(BF16)

// May lie behind the weight's end.
template <class F>
inline __attribute__((always_inline)) void prefetch_block(const uint8_t* block) {
  for (int line = 0; line < F::kBlockBytes; line += 64) __builtin_prefetch(block + line);
}

}  // namespace
}  // namespace bireme
