// What a kernel knows of a format when it is compiled.
#pragma once
#include "kernels/quantised/panel_kernels.h"

namespace bireme {
namespace {

constexpr int kScaleBytes = 64;   // of a record: 32 float16
constexpr int kGroupStride = 128;  // of 32 columns, 4 bytes each

template <int Bits, int ZeroShift, bool Minimum, bool Factors>
struct Format {
  static constexpr int kBits = Bits, kZeroShift = ZeroShift;
  // Factors that are not of scale and minimum are of the scale, signed, one for each half of the inputs.
  static constexpr bool kHasHalves = Factors && !Minimum;
  static constexpr bool kHasZero = ZeroShift > 0, kHasMinimum = Minimum, kHasFactors = Factors;
};
using Q4_0 = Format<4, 3, false, false>;
using Q4_1 = Format<4, 0, true, false>;
using Q5_0 = Format<5, 4, false, false>;
using Q5_1 = Format<5, 0, true, false>;
using Q8_0 = Format<8, 7, false, false>;
using Q4_K = Format<4, 0, true, true>;
using Q5_K = Format<5, 0, true, true>;
using Q6_K = Format<6, 5, false, true>;

template <class F>
constexpr int factors_offset() {
  return F::kHasMinimum ? 2 * kScaleBytes : kScaleBytes;
}
template <class F>
constexpr int quants_offset() {
  return factors_offset<F>() + (F::kHasFactors ? 64 : 0);
}
// Of the bits above four.
template <class F>
constexpr int high_offset() {
  return quants_offset<F>() + 4 * kGroupStride;
}
template <class F>
constexpr int record_bytes() {
  return quants_offset<F>() + F::kBits * 128;
}

// May lie behind the weight's end.
template <class F>
inline __attribute__((always_inline)) void prefetch_record(const uint8_t* record) {
  for (int line = 0; line < record_bytes<F>(); line += 64) __builtin_prefetch(record + line);
}

}  // namespace
}  // namespace bireme
