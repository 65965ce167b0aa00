// Mathematics of one row of logits whose bits depend on nothing but the row: fixed lanes, explicit FMA, own exp and log.
// The lane loops compile to vector code for whatever the processor has, and give the same bits for all of it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace bireme {

constexpr int kLanes = 16;
constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

// e^x for x <= 0, within 1e-7 relative; 0 below -87 (no denormals), and for NaN.
inline float exp_nonpositive(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer that stands in the low bits
  const float clamped = x > -87.0f ? x : -87.0f;
  const float shifted = std::fma(clamped, 1.44269504f, kRound);
  const float n = shifted - kRound;
  // ln 2 in two parts, so that n * ln 2 loses nothing.
  const float r = std::fma(n, -1.42860677e-6f, std::fma(n, -0.693145752f, clamped));
  float p = 1.38888889e-3f;
  p = std::fma(p, r, 8.33333333e-3f);
  p = std::fma(p, r, 4.16666667e-2f);
  p = std::fma(p, r, 1.66666667e-1f);
  p = std::fma(p, r, 0.5f);
  p = std::fma(p, r, 1.0f);
  p = std::fma(p, r, 1.0f);
  uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + 0x3f800000u;  // the low bits of `shifted` are n in two's complement
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return x > -87.0f ? p * scale : 0.0f;
}

// Natural logarithm of a normal x > 0, within 1e-14 relative to 1.
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
  float lanes[kLanes];
  for (float& lane : lanes) lane = kNegativeInfinity;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int k = 0; k < kLanes; ++k) lanes[k] = row[i + k] > lanes[k] ? row[i + k] : lanes[k];
  }
  for (; i < n; ++i) lanes[0] = row[i] > lanes[0] ? row[i] : lanes[0];
  float best = kNegativeInfinity;
  for (float lane : lanes) best = lane > best ? lane : best;
  return best;
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

// Sum in float64 over fixed lanes.
inline double row_sum(const float* row, int64_t n) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int k = 0; k < kLanes; ++k) lanes[k] += row[i + k];
  }
  for (; i < n; ++i) lanes[i % kLanes] += row[i];
  double sum = 0;
  for (double lane : lanes) sum += lane;
  return sum;
}

}  // namespace bireme
