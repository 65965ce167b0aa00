// y = x W^T for a small batch of rows x, with the neighbouring layers folded in: one pass over the weights at memory speed.
#pragma once
#include "generated/kernel_limits.h"
#include "kernels/device/cuda/device.h"

namespace bireme {

struct SmallBatchLinear {
  Half type;                             // of all arrays but a float32 y
  int rows, in_features, out_features;   // in_features a multiple of 8
  const void *x, *weight, *bias;         // [rows, in_features], [out_features, in_features], [out_features] or null
  const void* norm_weight;               // [in_features] or null: x is RMS-normed first
  float eps;
  bool swiglu;                           // weight is [gate; up]; y [rows, out_features / 2] = silu(gate) * up
  void* residual;                        // [rows, out_features] or null: the result is added to it in place and y is not written
  bool float32_output;
  void* y;
};

// Row r's bits depend on row r alone.
void small_batch_linear_cuda(const SmallBatchLinear& linear, Stream stream);

}  // namespace bireme
