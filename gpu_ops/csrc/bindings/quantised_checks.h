// A tensor that holds a quantised weight.
#pragma once
#include "bindings/checks.h"
#include "kernels/quantised/quantised.h"

inline bireme::QuantisedWeight quantised_weight(const paddle::Tensor& tensor, const char* name) {
  check_shape(tensor, name, paddle::DataType::UINT8, {kAnySize});
  check_cpu(tensor, name);
  bireme::QuantisedWeight weight;
  const char* fault = bireme::read_quantised_weight(tensor.data<uint8_t>(), tensor.numel(), &weight);
  PD_CHECK(fault == nullptr, name, ": ", fault);
  return weight;
}
