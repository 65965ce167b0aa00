// What a kernel knows of a format when it is compiled.
#pragma once
#include "kernels/quantised/panel_kernels.h"

namespace bireme {
namespace {

constexpr int kScaleBytes = 64;   // of a record: 32 float16
constexpr int kGroupStride = 128;  // of 32 columns, 4 bytes each

struct Q4_0 {
  static constexpr int kBits = 4, kZeroShift = 3;
  static constexpr bool kHasZero = true, kHasMinimum = false;
};
struct Q4_1 {
  static constexpr int kBits = 4, kZeroShift = 0;
  static constexpr bool kHasZero = false, kHasMinimum = true;
};
struct Q8_0 {
  static constexpr int kBits = 8, kZeroShift = 7;
  static constexpr bool kHasZero = true, kHasMinimum = false;
};

template <class F>
constexpr int quants_offset() {
  return F::kHasMinimum ? 2 * kScaleBytes : kScaleBytes;
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
