// rms_norm, add_rms_norm, qk_norm, swiglu.
#include "../kernels/norm.h"
#include "checks.h"

namespace {
constexpr auto kFloat = paddle::DataType::FLOAT32;

void check_rows(const paddle::Tensor& x, const char* name) {
  check_shape(x, name, kFloat, {kAnySize, kAnySize});
  check_not_empty(x, name);
  check_cpu(x, name);
}
}  // namespace

std::vector<paddle::Tensor> RmsNorm(const paddle::Tensor& x, const paddle::Tensor& weight, float eps) {
  check_rows(x, "x");
  const int64_t rows = x.shape()[0], hidden = x.shape()[1];
  check_shape(weight, "weight", kFloat, {hidden});
  auto out = paddle::empty({rows, hidden}, kFloat, x.place());
  bireme::rms_norm_cpu(x.data<float>(), weight.data<float>(), eps, rows, hidden, out.data<float>());
  return {out};
}

std::vector<paddle::Tensor> AddRmsNorm(const paddle::Tensor& x, const paddle::Tensor& residual, const paddle::Tensor& weight,
                                       float eps) {
  check_rows(x, "x");
  const int64_t rows = x.shape()[0], hidden = x.shape()[1];
  check_shape(residual, "residual", kFloat, {rows, hidden});
  check_shape(weight, "weight", kFloat, {hidden});
  auto out = paddle::empty({rows, hidden}, kFloat, x.place());
  bireme::add_rms_norm_cpu(x.data<float>(), mutable_data<float>(residual), weight.data<float>(), eps, rows, hidden,
                           out.data<float>());
  return {out};
}

void QkNorm(const paddle::Tensor& qkv, const paddle::Tensor& q_weight, const paddle::Tensor& k_weight, int64_t q_heads,
            int64_t kv_heads, float eps) {
  check_shape(q_weight, "q_weight", kFloat, {kAnySize});
  const int64_t head_dim = q_weight.numel();
  check_shape(k_weight, "k_weight", kFloat, {head_dim});
  check_shape(qkv, "qkv", kFloat, {kAnySize, (q_heads + 2 * kv_heads) * head_dim});
  check_cpu(qkv, "qkv");
  if (qkv.numel() == 0) return;
  bireme::qk_norm_cpu(mutable_data<float>(qkv), q_weight.data<float>(), k_weight.data<float>(), eps, qkv.shape()[0], q_heads,
                      kv_heads, head_dim);
}

std::vector<paddle::Tensor> Swiglu(const paddle::Tensor& gate_up) {
  check_rows(gate_up, "gate_up");
  PD_CHECK(gate_up.shape()[1] % 2 == 0, "gate_up: has ", gate_up.shape()[1], " columns, needs an even number");
  const int64_t rows = gate_up.shape()[0], inner = gate_up.shape()[1] / 2;
  auto out = paddle::empty({rows, inner}, kFloat, gate_up.place());
  bireme::swiglu_cpu(gate_up.data<float>(), rows, inner, out.data<float>());
  return {out};
}

PD_BUILD_OP(bireme_rms_norm)
    .Inputs({"x", "weight"}).Attrs({"eps: float"}).Outputs({"out"}).SetKernelFn(PD_KERNEL(RmsNorm));
// The new tensor comes first, the buffer written in place second.
PD_BUILD_OP(bireme_add_rms_norm)
    .Inputs({"x", "residual", "weight"}).Attrs({"eps: float"}).Outputs({"out", "residual_out"})
    .SetInplaceMap({{"residual", "residual_out"}})
    .SetKernelFn(PD_KERNEL(AddRmsNorm));
PD_BUILD_OP(bireme_qk_norm)
    .Inputs({"qkv", "q_weight", "k_weight"}).Attrs({"q_heads: int64_t", "kv_heads: int64_t", "eps: float"})
    .Outputs({"qkv_out"}).SetInplaceMap({{"qkv", "qkv_out"}})
    .SetKernelFn(PD_KERNEL(QkNorm));
PD_BUILD_OP(bireme_swiglu).Inputs({"gate_up"}).Outputs({"out"}).SetKernelFn(PD_KERNEL(Swiglu));
