// The AVX-512 instructions that panel_avx512.cc uses, in plain C++: a test runs its arithmetic on any processor.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/quantised/half.h"

struct __m512 {
  float lane[16];
};
struct __m512i {
  int32_t lane[16];
};
struct __m256i {
  uint16_t lane[16];
};
struct __m128i {
  uint8_t lane[16];
};

template <typename To, typename From>
To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a register of the same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
template <typename To, typename F>
To each_lane(F f) {
  To to;
  for (int i = 0; i < 16; ++i) to.lane[i] = f(i);
  return to;
}
struct Bytes {
  uint8_t lane[64];
};
struct Shorts {
  uint16_t lane[32];
};

inline __m512 _mm512_castsi512_ps(__m512i a) { return as<__m512>(a); }
inline __m512 _mm512_loadu_ps(const float* from) {
  return each_lane<__m512>([&](int i) { return from[i]; });
}
inline void _mm512_storeu_ps(float* to, __m512 a) { std::memcpy(to, a.lane, sizeof a.lane); }
inline __m512i _mm512_loadu_si512(const void* from) {
  __m512i to;
  std::memcpy(&to, from, sizeof to);
  return to;
}
inline __m256i _mm256_loadu_si256(const __m256i* from) {
  __m256i to;
  std::memcpy(&to, from, sizeof to);
  return to;
}
inline __m512 _mm512_setzero_ps() { return {}; }
inline __m512i _mm512_setzero_si512() { return {}; }
inline __m512i _mm512_set1_epi32(int32_t x) {
  return each_lane<__m512i>([&](int) { return x; });
}
inline __m512i _mm512_set1_epi8(int8_t x) {
  Bytes bytes;
  std::memset(&bytes, x, sizeof bytes);
  return as<__m512i>(bytes);
}
inline __m512i _mm512_and_si512(__m512i a, __m512i b) {
  return each_lane<__m512i>([&](int i) { return a.lane[i] & b.lane[i]; });
}
inline __m512i _mm512_srli_epi16(__m512i a, unsigned count) {
  auto shorts = as<Shorts>(a);
  for (auto& lane : shorts.lane) lane = static_cast<uint16_t>(lane >> count);
  return as<__m512i>(shorts);
}
inline __m512i _mm512_sub_epi32(__m512i a, __m512i b) {
  return each_lane<__m512i>([&](int i) { return a.lane[i] - b.lane[i]; });
}
// Unsigned bytes of a times signed bytes of b.
inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  const auto first = as<Bytes>(a), second = as<Bytes>(b);
  return each_lane<__m512i>([&](int i) {
    int32_t total = sum.lane[i];
    for (int j = 4 * i; j < 4 * i + 4; ++j) total += first.lane[j] * static_cast<int8_t>(second.lane[j]);
    return total;
  });
}
inline __m512 _mm512_cvtph_ps(__m256i a) {
  return each_lane<__m512>([&](int i) {
    uint8_t bytes[2];
    std::memcpy(bytes, &a.lane[i], sizeof bytes);
    return bireme::half_to_float(bytes);
  });
}
inline __m512 _mm512_cvtepi32_ps(__m512i a) {
  return each_lane<__m512>([&](int i) { return static_cast<float>(a.lane[i]); });
}
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) {
  return each_lane<__m512>([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return each_lane<__m512>([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
}
inline __m128i _mm_loadu_si128(const __m128i* from) {
  __m128i to;
  std::memcpy(&to, from, sizeof to);
  return to;
}
inline __m512i _mm512_cvtepu8_epi32(__m128i a) {
  return each_lane<__m512i>([&](int i) { return a.lane[i]; });
}
inline __m512i _mm512_cvtepi8_epi32(__m128i a) {
  return each_lane<__m512i>([&](int i) { return static_cast<int8_t>(a.lane[i]); });
}
inline __m512i _mm512_or_si512(__m512i a, __m512i b) {
  return each_lane<__m512i>([&](int i) { return a.lane[i] | b.lane[i]; });
}
inline __m512i _mm512_slli_epi32(__m512i a, unsigned count) {
  return each_lane<__m512i>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) << count); });
}
inline __m512i _mm512_srli_epi32(__m512i a, unsigned count) {
  return each_lane<__m512i>([&](int i) { return static_cast<int32_t>(static_cast<uint32_t>(a.lane[i]) >> count); });
}
inline __m512 _mm512_set1_ps(float x) {
  return each_lane<__m512>([&](int) { return x; });
}
inline __m512i _mm512_cvtepu16_epi32(__m256i a) {
  return each_lane<__m512i>([&](int i) { return a.lane[i]; });
}
inline __m512i _mm512_broadcast_i32x4(__m128i a) {
  Bytes bytes;
  for (int i = 0; i < 64; ++i) bytes.lane[i] = a.lane[i % 16];
  return as<__m512i>(bytes);
}
// Within each 16 bytes, the one that the low half of b says; its high bit is never set here.
inline __m512i _mm512_shuffle_epi8(__m512i a, __m512i b) {
  const auto from = as<Bytes>(a), which = as<Bytes>(b);
  Bytes bytes;
  for (int i = 0; i < 64; ++i) bytes.lane[i] = from.lane[i / 16 * 16 + which.lane[i] % 16];
  return as<__m512i>(bytes);
}
