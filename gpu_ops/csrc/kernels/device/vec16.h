// Sixteen floats as one value, in AVX-512, AVX2 with FMA, or plain C++; chosen at compile time.
//
// Every operation is one correctly rounded IEEE operation per lane, or a fixed sequence of them, so that the three
// variants give the same bits. Kernels use nothing else for arithmetic on floats, which makes their results independent of
// the instruction set.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/device/bfloat16.h"
#include "kernels/device/intrinsics.h"

#define BIREME_INLINE inline __attribute__((always_inline))

namespace bireme {
namespace {

constexpr int kLanes = 16;

#if defined(__AVX512F__)

// The largest register tile of a matrix product: rows by vectors of columns.
constexpr int kTileRows = 12;
constexpr int kTileVecs = 2;

struct Vec16 {
  __m512 v;
};

BIREME_INLINE __mmask16 first_lanes(int lanes) { return static_cast<__mmask16>((1u << lanes) - 1); }
BIREME_INLINE Vec16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
BIREME_INLINE Vec16 load(const Bfloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
BIREME_INLINE Vec16 load(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
BIREME_INLINE void store(float* p, Vec16 a) { _mm512_storeu_ps(p, a.v); }
BIREME_INLINE Vec16 load_first(const float* p, int lanes) { return {_mm512_maskz_loadu_ps(first_lanes(lanes), p)}; }
BIREME_INLINE void store_first(float* p, Vec16 a, int lanes) { _mm512_mask_storeu_ps(p, first_lanes(lanes), a.v); }
BIREME_INLINE Vec16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
BIREME_INLINE Vec16 fma(Vec16 a, Vec16 b, Vec16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
BIREME_INLINE Vec16 operator+(Vec16 a, Vec16 b) { return {_mm512_add_ps(a.v, b.v)}; }
BIREME_INLINE Vec16 operator-(Vec16 a, Vec16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
BIREME_INLINE Vec16 operator*(Vec16 a, Vec16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
BIREME_INLINE Vec16 operator/(Vec16 a, Vec16 b) { return {_mm512_div_ps(a.v, b.v)}; }
// a > b ? a : b, so a NaN in either gives b.
BIREME_INLINE Vec16 max(Vec16 a, Vec16 b) { return {_mm512_max_ps(a.v, b.v)}; }
BIREME_INLINE Vec16 min(Vec16 a, Vec16 b) { return {_mm512_min_ps(a.v, b.v)}; }
// The first `lanes` lanes of a, `other` in the rest.
BIREME_INLINE Vec16 keep_first(Vec16 a, int lanes, Vec16 other) {
  return {_mm512_mask_blend_ps(first_lanes(lanes), other.v, a.v)};
}
// 2^n by halves for integral n in [-250, 254]: p * first * second reaches subnormals and infinity with one rounding.
BIREME_INLINE Vec16 scale_by_power_of_two(Vec16 p, Vec16 n) {
  const __m512i exponent = _mm512_cvtps_epi32(n.v);
  const __m512i half = _mm512_srai_epi32(exponent, 1);
  const __m512i bias = _mm512_set1_epi32(127);
  const __m512i first = _mm512_slli_epi32(_mm512_add_epi32(half, bias), 23);
  const __m512i second = _mm512_slli_epi32(_mm512_add_epi32(_mm512_sub_epi32(exponent, half), bias), 23);
  return {_mm512_mul_ps(_mm512_mul_ps(p.v, _mm512_castsi512_ps(first)), _mm512_castsi512_ps(second))};
}

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int kTileRows = 6;
constexpr int kTileVecs = 1;

struct Vec16 {
  __m256 lo, hi;
};

BIREME_INLINE __m256i first_lanes(int lanes) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
BIREME_INLINE Vec16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
BIREME_INLINE __m256 load_half(const Bfloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
BIREME_INLINE __m256 load_half(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
template <typename Stored>
BIREME_INLINE Vec16 load(const Stored* p) {
  return {load_half(p), load_half(p + 8)};
}
BIREME_INLINE void store(float* p, Vec16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
BIREME_INLINE Vec16 load_first(const float* p, int lanes) {
  return {_mm256_maskload_ps(p, first_lanes(lanes)), _mm256_maskload_ps(p + 8, first_lanes(lanes - 8))};
}
BIREME_INLINE void store_first(float* p, Vec16 a, int lanes) {
  _mm256_maskstore_ps(p, first_lanes(lanes), a.lo);
  _mm256_maskstore_ps(p + 8, first_lanes(lanes - 8), a.hi);
}
BIREME_INLINE Vec16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
BIREME_INLINE Vec16 fma(Vec16 a, Vec16 b, Vec16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
BIREME_INLINE Vec16 operator+(Vec16 a, Vec16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
BIREME_INLINE Vec16 operator-(Vec16 a, Vec16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
BIREME_INLINE Vec16 operator*(Vec16 a, Vec16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
BIREME_INLINE Vec16 operator/(Vec16 a, Vec16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
BIREME_INLINE Vec16 max(Vec16 a, Vec16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
BIREME_INLINE Vec16 min(Vec16 a, Vec16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
BIREME_INLINE Vec16 keep_first(Vec16 a, int lanes, Vec16 other) {
  return {_mm256_blendv_ps(other.lo, a.lo, _mm256_castsi256_ps(first_lanes(lanes))),
          _mm256_blendv_ps(other.hi, a.hi, _mm256_castsi256_ps(first_lanes(lanes - 8)))};
}
BIREME_INLINE __m256 scale_half(__m256 p, __m256 n) {
  const __m256i exponent = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(exponent, 1);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
  const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(exponent, half), bias), 23);
  return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}
BIREME_INLINE Vec16 scale_by_power_of_two(Vec16 p, Vec16 n) { return {scale_half(p.lo, n.lo), scale_half(p.hi, n.hi)}; }

#else

constexpr int kTileRows = 4;
constexpr int kTileVecs = 1;

struct Vec16 {
  float v[kLanes];
};

template <typename F>
BIREME_INLINE Vec16 each_lane(F f) {
  Vec16 r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
  return r;
}
BIREME_INLINE Vec16 load(const float* p) {
  return each_lane([=](int i) { return p[i]; });
}
BIREME_INLINE Vec16 load(const Bfloat16* p) {
  return each_lane([=](int i) { return to_float(p[i]); });
}
BIREME_INLINE Vec16 load(const int8_t* p) {
  return each_lane([=](int i) { return static_cast<float>(p[i]); });
}
BIREME_INLINE void store(float* p, const Vec16& a) { std::memcpy(p, a.v, sizeof a.v); }
BIREME_INLINE Vec16 load_first(const float* p, int lanes) {
  return each_lane([=](int i) { return i < lanes ? p[i] : 0.0f; });
}
BIREME_INLINE void store_first(float* p, const Vec16& a, int lanes) {
  for (int i = 0; i < kLanes; ++i) {
    if (i < lanes) p[i] = a.v[i];
  }
}
BIREME_INLINE Vec16 broadcast(float x) {
  return each_lane([=](int) { return x; });
}
BIREME_INLINE Vec16 fma(const Vec16& a, const Vec16& b, const Vec16& c) {
  return each_lane([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
}
BIREME_INLINE Vec16 operator+(const Vec16& a, const Vec16& b) {
  return each_lane([&](int i) { return a.v[i] + b.v[i]; });
}
BIREME_INLINE Vec16 operator-(const Vec16& a, const Vec16& b) {
  return each_lane([&](int i) { return a.v[i] - b.v[i]; });
}
BIREME_INLINE Vec16 operator*(const Vec16& a, const Vec16& b) {
  return each_lane([&](int i) { return a.v[i] * b.v[i]; });
}
BIREME_INLINE Vec16 operator/(const Vec16& a, const Vec16& b) {
  return each_lane([&](int i) { return a.v[i] / b.v[i]; });
}
BIREME_INLINE Vec16 max(const Vec16& a, const Vec16& b) {
  return each_lane([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
BIREME_INLINE Vec16 min(const Vec16& a, const Vec16& b) {
  return each_lane([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
BIREME_INLINE Vec16 keep_first(const Vec16& a, int lanes, const Vec16& other) {
  return each_lane([&](int i) { return i < lanes ? a.v[i] : other.v[i]; });
}
BIREME_INLINE float power_of_two(int32_t n) {
  const uint32_t bits = static_cast<uint32_t>(n + 127) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
BIREME_INLINE Vec16 scale_by_power_of_two(const Vec16& p, const Vec16& n) {
  return each_lane([&](int i) {
    if (std::isnan(n.v[i])) return n.v[i];
    const int32_t exponent = static_cast<int32_t>(n.v[i]);
    const int32_t half = exponent >> 1;
    return p.v[i] * power_of_two(half) * power_of_two(exponent - half);
  });
}

#endif

BIREME_INLINE Vec16 zero() { return broadcast(0.0f); }

// The first `lanes` lanes, which are most often all: moving some of them takes many times as long.
BIREME_INLINE Vec16 load_up_to(const float* p, int lanes) { return lanes == kLanes ? load(p) : load_first(p, lanes); }
BIREME_INLINE void store_up_to(float* p, Vec16 a, int lanes) { lanes == kLanes ? store(p, a) : store_first(p, a, lanes); }

// Of a stored type, zeros in the other lanes; nothing behind the first `lanes` numbers is read.
template <typename Stored>
BIREME_INLINE Vec16 load_first(const Stored* p, int lanes) {
  Stored padded[kLanes] = {};
  std::memcpy(padded, p, lanes * sizeof(Stored));
  return load(padded);
}

// Sum of the lanes as a fixed tree: lane i with i + 8, then i + 4, i + 2, i + 1.
BIREME_INLINE float sum_lanes(Vec16 a) {
  float v[kLanes];
  store(v, a);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  }
  return v[0];
}

BIREME_INLINE float max_lanes(Vec16 a) {
  float v[kLanes];
  store(v, a);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
  }
  return v[0];
}

// e^x within 2 ulp over the whole range: subnormal results, 0 and infinity included; NaN stays NaN.
BIREME_INLINE Vec16 exp(Vec16 x) {
  // Operand order keeps a NaN: max and min return their second operand then.
  x = min(broadcast(89.0f), max(broadcast(-104.0f), x));
  // Adding and taking away 1.5 * 2^23 rounds to the nearest integer in every variant.
  const Vec16 magic = broadcast(12582912.0f);
  const Vec16 n = fma(x, broadcast(1.44269504f), magic) - magic;
  // ln 2 in two parts, the first short enough that n * ln2_high is exact.
  Vec16 r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  // |r| <= ln(2) / 2: the Taylor series to degree 7 is good to a tenth of an ulp there.
  Vec16 p = broadcast(1.0f / 5040);
  p = fma(p, r, broadcast(1.0f / 720));
  p = fma(p, r, broadcast(1.0f / 120));
  p = fma(p, r, broadcast(1.0f / 24));
  p = fma(p, r, broadcast(1.0f / 6));
  p = fma(p, r, broadcast(0.5f));
  p = fma(p, r, broadcast(1.0f));
  p = fma(p, r, broadcast(1.0f));
  return scale_by_power_of_two(p, n);
}

}  // namespace
}  // namespace bireme
