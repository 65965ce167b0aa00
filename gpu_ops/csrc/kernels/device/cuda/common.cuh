// Building blocks of the kernels: conversions, 16-byte vectors, reductions in a fixed order, launch checks.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels/device/cuda/device.h"

namespace bireme {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

// Calls f with a value of the element type.
template <typename F>
auto with_half(Half type, F&& f) {
  if (type == Half::kFloat16) return f(__half{});
  return f(__nv_bfloat16{});
}

__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ inline T from_float(float value);
template <>
__device__ inline __half from_float<__half>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// Two neighbours as one register, the first in the low half.
template <typename T>
__device__ inline uint32_t pack_pair(float low, float high);
template <>
__device__ inline uint32_t pack_pair<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ inline uint32_t pack_pair<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Eight elements: one 16-byte access.
constexpr int kVec = 8;
template <typename T>
struct alignas(16) Vec8 {
  T lane[kVec];
};

template <typename T>
__device__ inline Vec8<T> load_vec(const T* from) {
  return *reinterpret_cast<const Vec8<T>*>(from);
}

template <typename T>
__device__ inline void store_vec(T* to, const Vec8<T>& value) {
  *reinterpret_cast<Vec8<T>*>(to) = value;
}

template <typename T>
__device__ inline Vec8<T> zero_vec() {
  Vec8<T> value;
  *reinterpret_cast<uint4*>(&value) = make_uint4(0, 0, 0, 0);
  return value;
}

__device__ inline float warp_sum(float value) {
  for (int offset = kWarp / 2; offset; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

// Sum over the block, the same in every thread and every run. `scratch` holds 32 floats; all threads take part.
__device__ inline float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  const int warps = (blockDim.x + kWarp - 1) / kWarp, lane = threadIdx.x % kWarp;
  __syncthreads();
  if (lane == 0) scratch[threadIdx.x / kWarp] = value;
  __syncthreads();
  return warp_sum(lane < warps ? scratch[lane] : 0.0f);
}

// Inclusive prefix sum over a warp.
template <typename T>
__device__ inline T warp_prefix(T value) {
  const int lane = threadIdx.x % kWarp;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const T before = __shfl_up_sync(kAllLanes, value, offset);
    if (lane >= offset) value += before;
  }
  return value;
}

}  // namespace bireme
