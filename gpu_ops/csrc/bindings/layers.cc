// rms_norm, add_rms_norm, rms_norm_add, qk_norm, projection_norm, swiglu.
#include "kernels/layers/cuda/layers.h"
#include "kernels/layers/norm.h"
#include "bindings/device.h"

namespace {
// Returns the type of x, which the op's other tensors share.
paddle::DataType check_rows(const paddle::Tensor& x, const char* name) {
  const paddle::DataType dtype = float_type(x, name);
  check_shape(x, name, dtype, {kAnySize, kAnySize});
  check_not_empty(x, name);
  if (x.is_gpu()) check_gpu_columns(x.shape()[1], name);
  return dtype;
}
}  // namespace

std::vector<paddle::Tensor> RmsNorm(const paddle::Tensor& x, const paddle::Tensor& weight, float eps) {
  const paddle::DataType dtype = check_rows(x, "x");
  const int64_t rows = x.shape()[0], hidden = x.shape()[1];
  check_shape(weight, "weight", dtype, {hidden});
  check_same_place(x, "x", weight, "weight");
  auto out = paddle::empty({rows, hidden}, dtype, x.place());
  if constexpr (kWithCuda) {
    if (x.is_gpu()) {
      on_device([&] {
        bireme::rms_norm_cuda(half_of(dtype), x.data(), weight.data(), eps, rows, hidden, out.data(), stream_of(x));
      });
      return {out};
    }
  }
  bireme::rms_norm_cpu(x.data<float>(), weight.data<float>(), eps, rows, hidden, out.data<float>());
  return {out};
}

std::vector<paddle::Tensor> AddRmsNorm(const paddle::Tensor& x, const paddle::Tensor& residual, const paddle::Tensor& weight,
                                       float eps) {
  const paddle::DataType dtype = check_rows(x, "x");
  const int64_t rows = x.shape()[0], hidden = x.shape()[1];
  check_shape(residual, "residual", dtype, {rows, hidden});
  check_shape(weight, "weight", dtype, {hidden});
  check_same_place(x, "x", residual, "residual", weight, "weight");
  auto out = paddle::empty({rows, hidden}, dtype, x.place());
  if constexpr (kWithCuda) {
    if (x.is_gpu()) {
      on_device([&] {
        bireme::add_rms_norm_cuda(half_of(dtype), x.data(), raw_data(residual), weight.data(), eps, rows, hidden, out.data(),
                                  stream_of(x));
      });
      return {out};
    }
  }
  bireme::add_rms_norm_cpu(x.data<float>(), mutable_data<float>(residual), weight.data<float>(), eps, rows, hidden,
                           out.data<float>());
  return {out};
}

void RmsNormAdd(const paddle::Tensor& x, const paddle::Tensor& residual, const paddle::Tensor& weight, float eps) {
  const paddle::DataType dtype = check_rows(x, "x");
  const int64_t rows = x.shape()[0], hidden = x.shape()[1];
  check_shape(residual, "residual", dtype, {rows, hidden});
  check_shape(weight, "weight", dtype, {hidden});
  check_same_place(x, "x", residual, "residual", weight, "weight");
  if constexpr (kWithCuda) {
    if (x.is_gpu()) {
      return on_device([&] {
        bireme::rms_norm_add_cuda(half_of(dtype), x.data(), raw_data(residual), weight.data(), eps, rows, hidden, stream_of(x));
      });
    }
  }
  bireme::rms_norm_add_cpu(x.data<float>(), mutable_data<float>(residual), weight.data<float>(), eps, rows, hidden);
}

void QkNorm(const paddle::Tensor& qkv, const paddle::Tensor& q_weight, const paddle::Tensor& k_weight, int64_t q_heads,
            int64_t kv_heads, float eps) {
  const paddle::DataType dtype = float_type(qkv, "qkv");
  check_shape(q_weight, "q_weight", dtype, {kAnySize});
  const int64_t head_dim = q_weight.numel();
  check_shape(k_weight, "k_weight", dtype, {head_dim});
  check_shape(qkv, "qkv", dtype, {kAnySize, (q_heads + 2 * kv_heads) * head_dim});
  check_same_place(qkv, "qkv", q_weight, "q_weight", k_weight, "k_weight");
  if (qkv.numel() == 0) return;
  if constexpr (kWithCuda) {
    if (qkv.is_gpu()) {
      PD_CHECK(head_dim % 8 == 0 && head_dim <= 256, "q_weight: has ", head_dim, " elements, needs a multiple of 8 up to 256");
      return on_device([&] {
        bireme::qk_norm_cuda(half_of(dtype), raw_data(qkv), q_weight.data(), k_weight.data(), eps, qkv.shape()[0], q_heads,
                             kv_heads, head_dim, stream_of(qkv));
      });
    }
  }
  bireme::qk_norm_cpu(mutable_data<float>(qkv), q_weight.data<float>(), k_weight.data<float>(), eps, qkv.shape()[0], q_heads,
                      kv_heads, head_dim);
}

void ProjectionNorm(const paddle::Tensor& qkv, const paddle::Tensor& q_weight, const paddle::Tensor& k_weight, float eps) {
  const paddle::DataType dtype = float_type(qkv, "qkv");
  check_shape(q_weight, "q_weight", dtype, {kAnySize});
  check_shape(k_weight, "k_weight", dtype, {kAnySize});
  const int64_t q_width = q_weight.numel(), kv_width = k_weight.numel();
  check_shape(qkv, "qkv", dtype, {kAnySize, q_width + 2 * kv_width});
  check_same_place(qkv, "qkv", q_weight, "q_weight", k_weight, "k_weight");
  if (qkv.numel() == 0) return;
  const int64_t rows = qkv.shape()[0];
  if constexpr (kWithCuda) {
    if (qkv.is_gpu()) {
      PD_CHECK(q_width % 8 == 0, "q_weight: has ", q_width, " elements, needs a multiple of 8 on the GPU");
      PD_CHECK(kv_width % 8 == 0, "k_weight: has ", kv_width, " elements, needs a multiple of 8 on the GPU");
      return on_device([&] {
        bireme::projection_norm_cuda(half_of(dtype), raw_data(qkv), q_weight.data(), k_weight.data(), eps, rows, q_width,
                                     kv_width, stream_of(qkv));
      });
    }
  }
  bireme::projection_norm_cpu(mutable_data<float>(qkv), q_weight.data<float>(), k_weight.data<float>(), eps, rows, q_width,
                              kv_width);
}

std::vector<paddle::Tensor> Swiglu(const paddle::Tensor& gate_up) {
  const paddle::DataType dtype = check_rows(gate_up, "gate_up");
  PD_CHECK(gate_up.shape()[1] % 2 == 0, "gate_up: has ", gate_up.shape()[1], " columns, needs an even number");
  const int64_t rows = gate_up.shape()[0], inner = gate_up.shape()[1] / 2;
  auto out = paddle::empty({rows, inner}, dtype, gate_up.place());
  if constexpr (kWithCuda) {
    if (gate_up.is_gpu()) {
      PD_CHECK(inner % 8 == 0, "gate_up: has ", 2 * inner, " columns, needs a multiple of 16 on the GPU");
      on_device([&] {
        bireme::swiglu_cuda(half_of(dtype), gate_up.data(), rows, inner, out.data(), stream_of(gate_up));
      });
      return {out};
    }
  }
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
PD_BUILD_OP(bireme_rms_norm_add)
    .Inputs({"x", "residual", "weight"}).Attrs({"eps: float"}).Outputs({"residual_out"})
    .SetInplaceMap({{"residual", "residual_out"}})
    .SetKernelFn(PD_KERNEL(RmsNormAdd));
PD_BUILD_OP(bireme_qk_norm)
    .Inputs({"qkv", "q_weight", "k_weight"}).Attrs({"q_heads: int64_t", "kv_heads: int64_t", "eps: float"})
    .Outputs({"qkv_out"}).SetInplaceMap({{"qkv", "qkv_out"}})
    .SetKernelFn(PD_KERNEL(QkNorm));
PD_BUILD_OP(bireme_projection_norm)
    .Inputs({"qkv", "q_weight", "k_weight"}).Attrs({"eps: float"})
    .Outputs({"qkv_out"}).SetInplaceMap({{"qkv", "qkv_out"}})
    .SetKernelFn(PD_KERNEL(ProjectionNorm));
PD_BUILD_OP(bireme_swiglu).Inputs({"gate_up"}).Outputs({"out"}).SetKernelFn(PD_KERNEL(Swiglu));
