// float16 in memory, float32 in arithmetic.
#pragma once
#include "cuda_runtime.h"

struct __half { uint16_t bits; };
struct __half2 { __half x, y; };
inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  float size = std::ldexp(static_cast<float>(exponent ? 1024 + mantissa : mantissa), std::max(exponent, 1) - 25);
  if (exponent == 31) size = mantissa ? NAN : INFINITY;
  return value.bits >> 15 ? -size : size;
}
inline __half __float2half_rn(float value) {
  const int sign = std::signbit(value) ? 1 << 15 : 0;
  if (std::isnan(value)) return {static_cast<uint16_t>(sign | 0x7e00)};
  int exponent = 16;
  if (!std::isinf(value)) std::frexp(value, &exponent);
  if (exponent > 16) exponent = 16;
  // Below 2^-14 all numbers lie equally close. A mantissa that is rounded up to 2048 carries into the exponent.
  const int scale = std::max(exponent, -13);
  const auto steps = static_cast<int>(std::nearbyint(std::ldexp(std::min(std::fabs(value), 131072.0f), 11 - scale)));
  const int bits = std::min(((scale + 13) << 10) + steps, 31 << 10);
  return {static_cast<uint16_t>(sign | bits)};
}
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
