// A weight of either kind: dense panels or a quantised weight.
#pragma once
#include "kernels/linear/linear.h"
#include "kernels/quantised/quantised.h"

namespace bireme {

struct LinearWeight {
  const float* packed;  // null where it is quantised
  QuantisedWeight quantised;
};

inline void apply_linear_cpu(const float* x, int64_t rows, int64_t in_features, const LinearWeight& weight,
                             int64_t out_features, const float* bias, float* y) {
  if (weight.packed) {
    linear_cpu(x, rows, in_features, weight.packed, out_features, bias, y);
  } else {
    quantised_linear_cpu(x, rows, weight.quantised, bias, y);
  }
}

}  // namespace bireme
