// quantised_linear, quantised_embedding.
#include "bindings/quantised_checks.h"

namespace {
constexpr auto kFloat = paddle::DataType::FLOAT32;

const bireme::PanelKernels& kernels_named(const std::string& name) {
  if (name.empty()) return bireme::best_panel_kernels();
  for (const auto find : {bireme::avx512_panel_kernels, bireme::avx2_panel_kernels, bireme::portable_panel_kernels}) {
    const bireme::PanelKernels* kernels = find();
    if (kernels && name == kernels->name) return *kernels;
  }
  PD_THROW("instruction_set: ", name, " is none that this processor has");
}
}  // namespace

std::vector<paddle::Tensor> QuantisedLinear(const paddle::Tensor& x, const paddle::Tensor& weight,
                                            const paddle::optional<paddle::Tensor>& bias,
                                            const std::string& instruction_set) {
  const bireme::QuantisedWeight read = quantised_weight(weight, "weight");
  check_shape(x, "x", kFloat, {kAnySize, read.in_features});
  check_not_empty(x, "x");
  check_cpu(x, "x");
  if (bias) check_shape(*bias, "bias", kFloat, {read.out_features});
  const int64_t rows = x.shape()[0];
  auto y = paddle::empty({rows, read.out_features}, kFloat, x.place());
  bireme::quantised_linear_cpu(x.data<float>(), rows, read, bias ? bias->data<float>() : nullptr, y.data<float>(),
                               kernels_named(instruction_set));
  return {y};
}

std::vector<paddle::Tensor> QuantisedEmbedding(const paddle::Tensor& weight, const paddle::Tensor& ids) {
  const bireme::QuantisedWeight read = quantised_weight(weight, "weight");
  check_shape(ids, "ids", paddle::DataType::INT64, {kAnySize});
  check_not_empty(ids, "ids");
  check_cpu(ids, "ids");
  const int64_t rows = ids.shape()[0];
  auto out = paddle::empty({rows, read.in_features}, kFloat, ids.place());
  bireme::quantised_embedding_cpu(read, ids.data<int64_t>(), rows, out.data<float>());
  return {out};
}

PD_BUILD_OP(bireme_quantised_linear)
    .Inputs({"x", "weight", paddle::Optional("bias")})
    .Attrs({"instruction_set: std::string"}).Outputs({"y"})
    .SetKernelFn(PD_KERNEL(QuantisedLinear));
PD_BUILD_OP(bireme_quantised_embedding)
    .Inputs({"weight", "ids"}).Outputs({"out"})
    .SetKernelFn(PD_KERNEL(QuantisedEmbedding));
