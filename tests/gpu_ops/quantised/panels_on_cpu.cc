// The AVX-512 kernels over instructions in plain C++ (avx512_on_cpu), beside the portable ones.
#define __builtin_cpu_supports(name) 1
#include "kernels/quantised/panel_avx512.cc"
#undef __builtin_cpu_supports

#include "kernels/quantised/quantised.h"

namespace bireme {
const PanelKernels* avx2_panel_kernels() { return nullptr; }
}  // namespace bireme

// Returns how many rows the largest tile has, or -1.
extern "C" int64_t linear(const float* x, int64_t rows, const uint8_t* weight, int64_t bytes, const float* bias, int64_t avx512,
                          float* y) {
  bireme::QuantisedWeight read;
  if (bireme::read_quantised_weight(weight, bytes, &read)) return -1;
  const auto& kernels = avx512 ? *bireme::avx512_panel_kernels() : *bireme::portable_panel_kernels();
  bireme::quantised_linear_cpu(x, rows, read, bias, y, kernels);
  return kernels.rows;
}
