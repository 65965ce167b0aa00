// Checks of a matmul on the GPU, where weights stay as they are, [out_features, in_features].
#pragma once
#include "bindings/device.h"

// Returns in_features. `weight_name` is what the caller's op calls the weight.
inline int64_t check_cuda_linear(const paddle::Tensor& x, const paddle::Tensor& weight, const char* weight_name,
                                 const paddle::optional<paddle::Tensor>& bias, int64_t out_features) {
  const paddle::DataType dtype = float_type(x, "x");
  check_shape(weight, weight_name, dtype, {out_features, kAnySize});
  const int64_t in_features = weight.shape()[1];
  check_gpu_columns(in_features, weight_name);
  check_shape(x, "x", dtype, {kAnySize, in_features});
  check_not_empty(x, "x");
  check_same_place(x, "x", weight, weight_name);
  if (bias) {
    check_shape(*bias, "bias", dtype, {out_features});
    check_same_place(x, "x", *bias, "bias");
  }
  return in_features;
}
