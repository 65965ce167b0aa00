// Rotary embedding of eight pairs of a head; every kernel that turns a head gives the same bits.
#pragma once
#include "kernels/device/cuda/common.cuh"

namespace bireme {

// Reads elements column.. and column + half.. of `head` and turns element i with element i + half. cos_sin: of the position,
// cosines in its first half.
template <typename T>
__device__ inline void turn(const T* head, int column, int half, const float* cos_sin, Vec8<T>& first, Vec8<T>& second) {
  first = load_vec(head + column), second = load_vec(head + column + half);
  float cosine[kVec], sine[kVec];
#pragma unroll
  for (int i = 0; i < kVec; i += 4) {
    *reinterpret_cast<float4*>(cosine + i) = *reinterpret_cast<const float4*>(cos_sin + column + i);
    *reinterpret_cast<float4*>(sine + i) = *reinterpret_cast<const float4*>(cos_sin + half + column + i);
  }
#pragma unroll
  for (int i = 0; i < kVec; ++i) {
    const float a = to_float(first.lane[i]), b = to_float(second.lane[i]);
    // Rounded products: no compiler may contract them differently elsewhere.
    first.lane[i] = from_float<T>(__fsub_rn(__fmul_rn(a, cosine[i]), __fmul_rn(b, sine[i])));
    second.lane[i] = from_float<T>(__fadd_rn(__fmul_rn(b, cosine[i]), __fmul_rn(a, sine[i])));
  }
}

}  // namespace bireme
