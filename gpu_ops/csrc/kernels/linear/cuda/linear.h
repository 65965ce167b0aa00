// y = x W^T on the GPU through cuBLASLt.
#pragma once
#include "kernels/device/cuda/device.h"

namespace bireme {

struct CudaLinear {
  Half type;                                   // of x, weight and bias
  bool float32_output;                         // y is float32 instead of `type`
  bool batch_invariant;                        // one algorithm for every number of rows, no split over in_features
  int64_t rows, in_features, out_features;
  const void *x, *weight, *bias;               // [rows, in_features], [out_features, in_features], [out_features] or null
  void* y;                                     // [rows, out_features]
};

// The first call on a device allocates a workspace, so it must not be captured in a graph. Calls of one process go to one
// stream at a time: they share the workspace.
void linear_cuda(const CudaLinear& linear, Stream stream);

}  // namespace bireme
