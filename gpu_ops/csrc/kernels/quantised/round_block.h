// A block of 32 inputs as whole numbers, with AVX2 or in plain C++ for any processor; the same numbers.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/device/intrinsics.h"
#include "kernels/quantised/panel_kernels.h"

namespace bireme {
namespace {

// Of 32 inputs: 4 to a word, the sum of all and that of the first 16.
struct RoundedBlock {
  alignas(32) int32_t words[8];
  int32_t sum, first_sum;
};

#if defined(__AVX2__)

inline int32_t sum_of(__m128i four) {
  const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

// The greatest of the bits of |x|, which are ordered as the numbers are; what is not finite comes last.
inline int32_t greatest_magnitude(const float* x) {
  const auto magnitude = [&](int i) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 8 * i));
    return _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
  };
  const __m256i eight = _mm256_max_epi32(_mm256_max_epi32(magnitude(0), magnitude(1)), _mm256_max_epi32(magnitude(2), magnitude(3)));
  const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  const __m128i two = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}

// x * inverse, to the nearest whole numbers, ties to even; they are from -127 to 127.
inline RoundedBlock round_block(const float* x, float inverse) {
  const auto rounded = [&](int i) {
    return _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), _mm256_set1_ps(inverse)));
  };
  const __m256i a = rounded(0), b = rounded(1), c = rounded(2), d = rounded(3);
  const auto sum_of_eight = [](__m256i v) { return sum_of(_mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1))); };
  const __m256i first = _mm256_add_epi32(a, b);
  RoundedBlock block;
  block.first_sum = sum_of_eight(first);
  block.sum = sum_of_eight(_mm256_add_epi32(first, _mm256_add_epi32(c, d)));
  // Packing goes by halves of a register: words 0, 2, 4, 6, then 1, 3, 5, 7.
  const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
  const __m256i in_order = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_store_si256(reinterpret_cast<__m256i*>(block.words), in_order);
  return block;
}

#else

inline int32_t greatest_magnitude(const float* x) {
  int32_t bits[kBlockInputs], most = 0;
  std::memcpy(bits, x, sizeof bits);
  for (int i = 0; i < kBlockInputs; ++i) most = std::max(most, bits[i] & 0x7fffffff);
  return most;
}

inline RoundedBlock round_block(const float* x, float inverse) {
  RoundedBlock block{};
  int8_t quants[kBlockInputs];
  for (int i = 0; i < kBlockInputs; ++i) {
    // Adding 1.5 * 2^23 rounds to the nearest integer, which the last bits then hold.
    const float shifted = x[i] * inverse + 12582912.0f;
    int32_t quant;
    std::memcpy(&quant, &shifted, sizeof quant);
    quant -= 0x4b400000;
    block.sum += quant;
    if (i < kBlockInputs / 2) block.first_sum += quant;
    quants[i] = static_cast<int8_t>(quant);
  }
  std::memcpy(block.words, quants, sizeof quants);
  return block;
}

#endif

}  // namespace
}  // namespace bireme
