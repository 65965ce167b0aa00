// Mathematics of one row of logits whose bits depend on nothing but the row: exact maxima, sums in fixed lanes.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels/device/vec16.h"

namespace bireme {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Rows of working memory are padded to whole vectors.
inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// Sixteen values from i on, `filler` beyond n.
BIREME_INLINE Vec16 load_row(const float* row, int64_t i, int64_t n, Vec16 filler) {
  if (i + kLanes <= n) return load(row + i);
  const int lanes = static_cast<int>(n - i);
  return keep_first(load_first(row + i, lanes), lanes, filler);
}

// Sums in float64, one a lane. Vector types of the compiler: it lowers them to what the processor has.
class LaneSums {
 public:
  BIREME_INLINE void add(const float* values) {
    for (int half = 0; half < 2; ++half) sums_[half] += __builtin_convertvector(read<Float8>(values + 8 * half), Double8);
  }
  // Adds the values whose key is at most `limit`.
  BIREME_INLINE void add_where(const float* values, const float* keys, float limit) {
    for (int half = 0; half < 2; ++half) {
      const Int8 within = read<Float8>(keys + 8 * half) <= limit;
      const Int8 bits = read<Int8>(values + 8 * half) & within;
      sums_[half] += __builtin_convertvector((Float8)bits, Double8);
    }
  }
  double total() const {
    double sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += sums_[lane / 8][lane % 8];
    return sum;
  }

 private:
  typedef float Float8 __attribute__((vector_size(32)));
  typedef int32_t Int8 __attribute__((vector_size(32)));
  typedef double Double8 __attribute__((vector_size(64)));

  template <typename Vector>
  static BIREME_INLINE Vector read(const float* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }

  Double8 sums_[2] = {};
};

// Natural logarithm of a normal x > 0, within 1e-14 relative to 1; the C library's differs between machines.
inline double log_positive(double x) {
  int exponent;
  double m = std::frexp(x, &exponent);
  if (m < 0.70710678118654752) {
    m *= 2;
    exponent -= 1;
  }
  const double t = (m - 1) / (m + 1), t2 = t * t;  // log m = 2 atanh t, |t| < 0.172
  double series = 0;
  for (int k = 23; k >= 1; k -= 2) series = std::fma(series, t2, 1.0 / k);
  return std::fma(static_cast<double>(exponent), 0.69314718055994531, 2 * t * series);
}

// Largest value that is not NaN, -inf if there is none.
inline float row_max(const float* row, int64_t n) {
  const Vec16 lowest = broadcast(-kInfinity);
  Vec16 even = lowest, odd = lowest;  // max keeps its second operand beside a NaN
  for (int64_t i = 0; i < n; i += 2 * kLanes) {
    even = max(load_row(row, i, n, lowest), even);
    if (i + kLanes < n) odd = max(load_row(row, i + kLanes, n, lowest), odd);
  }
  return max_lanes(max(even, odd));
}

// Lowest index of the largest value that is not NaN, 0 if all are NaN.
inline int64_t row_argmax(const float* row, int64_t n) {
  const float best = row_max(row, n);
  constexpr int64_t kBlock = 256;
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t end = start + kBlock < n ? start + kBlock : n;
    int found = 0;
    for (int64_t i = start; i < end; ++i) found |= row[i] == best;
    if (!found) continue;
    for (int64_t i = start; i < end; ++i) {
      if (row[i] == best) return i;
    }
  }
  return 0;
}

}  // namespace
}  // namespace bireme
