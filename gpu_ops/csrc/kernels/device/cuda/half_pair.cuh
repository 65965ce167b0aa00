// Two neighbouring elements in one register, the first in the low half; `pack_pair` makes one.
#pragma once
#include "kernels/device/cuda/common.cuh"

namespace bireme {

template <typename T>
__device__ inline float2 unpack_pair(uint32_t pair);
template <>
__device__ inline float2 unpack_pair<__half>(uint32_t pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
template <>
__device__ inline float2 unpack_pair<__nv_bfloat16>(uint32_t pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}

// Products, rounded once.
template <typename T>
__device__ inline uint32_t multiply_pairs(uint32_t a, uint32_t b);
template <>
__device__ inline uint32_t multiply_pairs<__half>(uint32_t a, uint32_t b) {
  const __half2 product = __hmul2(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}
template <>
__device__ inline uint32_t multiply_pairs<__nv_bfloat16>(uint32_t a, uint32_t b) {
  const __nv_bfloat162 product = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&a), *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// x times the norm's gain; the squares of x are added to `squares`.
template <typename T>
__device__ inline uint32_t times_gain(uint32_t x, uint32_t gain, float& squares) {
  const float2 value = unpack_pair<T>(x);
  squares = fmaf(value.y, value.y, fmaf(value.x, value.x, squares));
  return multiply_pairs<T>(x, gain);
}

}  // namespace bireme
