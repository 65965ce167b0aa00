// What the CUDA kernels share with the bindings: types, and no CUDA or Paddle headers.
#pragma once
#include <cstdint>

struct CUstream_st;

namespace bireme {

using Stream = CUstream_st*;

// Element type of activations, weights and caches. Sums are float32 in either case.
enum class Half { kFloat16, kBfloat16 };

// Number of the calling thread's current GPU.
int current_device();

}  // namespace bireme
