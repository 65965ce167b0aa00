// How keys and values are stored in the paged cache of the CPU, by the type of its numbers.
//
// int8 stands for number * scale, with one scale for a position's key and one for its value in each head, made of that vector
// alone. What follows the keys of a block is its scales: those of the keys, float [block_size], then those of the values.
#pragma once
#include "generated/kernel_limits.h"
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/attention/attention.h"
#include "kernels/device/bfloat16.h"

namespace bireme {
namespace {

template <typename Number>
constexpr bool kHasScales = std::is_same_v<Number, int8_t>;

// Where the parts of one block and head lie.
template <typename Number>
struct KvLayout {
  int64_t head_dim, block_size;

  int64_t key_numbers() const { return head_dim * block_size + (kHasScales<Number> ? kKvScaleRows * block_size : 0); }
  int64_t value_numbers() const { return head_dim * block_size; }
  // Of the keys; those of the values follow them.
  template <typename Keys>
  auto* scales(Keys* keys) const {
    using Float = std::conditional_t<std::is_const_v<Keys>, const float, float>;
    return reinterpret_cast<Float*>(keys + head_dim * block_size);
  }
};

// A head's vector [dim] as it is stored: to[d * stride], and its scale where the type has one.
inline void store_vector(const float* x, int64_t dim, float* to, int64_t stride, float*) {
  for (int64_t d = 0; d < dim; ++d) to[d * stride] = x[d];
}

inline void store_vector(const float* x, int64_t dim, Bfloat16* to, int64_t stride, float*) {
  for (int64_t d = 0; d < dim; ++d) to[d * stride] = to_bfloat16(x[d]);
}

// The scale takes the largest magnitude to 127. A vector that is not finite gets a scale that is no number.
inline void store_vector(const float* x, int64_t dim, int8_t* to, int64_t stride, float* scale) {
  constexpr uint32_t kInfinity = 0x7f800000;
  uint32_t most = 0;  // of the magnitudes' bits, whose order is that of the magnitudes
  for (int64_t d = 0; d < dim; ++d) {
    uint32_t bits;
    std::memcpy(&bits, x + d, sizeof bits);
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  float largest;
  std::memcpy(&largest, &most, sizeof largest);
  *scale = most < kInfinity ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
  if (most >= kInfinity || *scale == 0.0f) {
    for (int64_t d = 0; d < dim; ++d) to[d * stride] = 0;
    return;
  }
  // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even. A scale in the subnormal range may be too small.
  constexpr float kRound = 12582912.0f;
  for (int64_t d = 0; d < dim; ++d) {
    const float rounded = (x[d] / *scale + kRound) - kRound;
    to[d * stride] = static_cast<int8_t>(rounded > 127.0f ? 127.0f : rounded < -127.0f ? -127.0f : rounded);
  }
}

// Calls f with a number of the cache's type, whose value says nothing.
template <typename F>
auto with_kv_number(KvType type, F&& f) {
  switch (type) {
    case KvType::kBfloat16: return f(Bfloat16{});
    case KvType::kInt8: return f(int8_t{});
    default: return f(float{});
  }
}

}  // namespace
}  // namespace bireme
