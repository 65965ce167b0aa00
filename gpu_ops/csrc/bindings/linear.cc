// set_num_threads, pack_weight, linear, embedding.
#include "kernels/linear/linear.h"

#include "kernels/layers/cuda/layers.h"
#include "kernels/linear/cuda/linear.h"
#include "kernels/device/huge_pages.h"
#include "kernels/device/thread_pool.h"
#include "bindings/cuda_linear_checks.h"

namespace {
constexpr auto kFloat = paddle::DataType::FLOAT32;
constexpr auto kInt64 = paddle::DataType::INT64;

void check_packed(const paddle::Tensor& packed, int64_t out_features) {
  PD_CHECK(out_features >= 1, "out_features: is ", out_features, ", needs to be at least 1");
  check_shape(packed, "packed", kFloat, {bireme::panel_count(out_features), kAnySize, bireme::kPanelColumns});
}
}  // namespace

// Ops need a tensor to be dispatched on; `threads` holds [threads, spin microseconds].
void SetNumThreads(const paddle::Tensor& threads) {
  check_shape(threads, "threads", kInt64, {2});
  check_cpu(threads, "threads");
  const int64_t* values = threads.data<int64_t>();
  PD_CHECK(values[0] >= 1 && values[0] <= 1024, "threads: is ", values[0], ", needs to be from 1 to 1024");
  PD_CHECK(values[1] >= 0 && values[1] <= 1000000, "spin_microseconds: is ", values[1], ", needs to be from 0 to 1000000");
  bireme::set_num_threads(static_cast<int>(values[0]), static_cast<int>(values[1]));
}

std::vector<paddle::Tensor> PackWeight(const paddle::Tensor& weight) {
  check_shape(weight, "weight", kFloat, {kAnySize, kAnySize});
  check_not_empty(weight, "weight");
  check_cpu(weight, "weight");
  const int64_t out_features = weight.shape()[0], in_features = weight.shape()[1];
  const std::vector<int64_t> shape{bireme::panel_count(out_features), in_features, bireme::kPanelColumns};
  auto packed = paddle::empty(shape, kFloat, weight.place());
  bireme::prefer_huge_pages(packed.data<float>(), packed.numel() * sizeof(float));
  bireme::pack_weight_cpu(weight.data<float>(), out_features, in_features, packed.data<float>());
  return {packed};
}

namespace {
std::vector<paddle::Tensor> linear_gpu(const paddle::Tensor& x, const paddle::Tensor& weight,
                                       const paddle::optional<paddle::Tensor>& bias, int64_t out_features, bool float32_output,
                                       bool batch_invariant) {
  const int64_t in_features = check_cuda_linear(x, weight, "packed", bias, out_features), rows = x.shape()[0];
  // cuBLASLt adds float32 biases alone to float32 outputs; no model has a bias on its logits.
  PD_CHECK(!(bias && float32_output), "bias: cannot be added to a float32 output on the GPU");
  auto y = paddle::empty({rows, out_features}, float32_output ? kFloat : x.dtype(), x.place());
  if constexpr (kWithCuda) {
    on_device([&] {
      bireme::linear_cuda({half_of(x.dtype()), float32_output, batch_invariant, rows, in_features, out_features, x.data(), weight.data(),
                           bias ? bias->data() : nullptr, y.data()},
                          stream_of(x));
    });
  }
  return {y};
}

std::vector<paddle::Tensor> embedding_gpu(const paddle::Tensor& weight, const paddle::Tensor& ids, int64_t vocab_size) {
  check_same_place(weight, "weight", ids, "ids");
  const paddle::DataType dtype = float_type(weight, "weight");
  check_shape(weight, "weight", dtype, {vocab_size, kAnySize});
  const int64_t rows = ids.shape()[0], hidden = weight.shape()[1];
  check_gpu_columns(hidden, "weight");
  auto out = paddle::empty({rows, hidden}, dtype, weight.place());
  if constexpr (kWithCuda) {
    on_device([&] {
      bireme::gather_rows_cuda(weight.data(), vocab_size, hidden, ids.data<int64_t>(), rows, out.data(), stream_of(weight));
    });
  }
  return {out};
}
}  // namespace

std::vector<paddle::Tensor> Linear(const paddle::Tensor& x, const paddle::Tensor& packed,
                                   const paddle::optional<paddle::Tensor>& bias, int64_t out_features, bool float32_output,
                                   bool batch_invariant) {
  if (x.is_gpu()) return linear_gpu(x, packed, bias, out_features, float32_output, batch_invariant);
  check_packed(packed, out_features);
  const int64_t in_features = packed.shape()[1];
  check_shape(x, "x", kFloat, {kAnySize, in_features});
  check_not_empty(x, "x");
  check_cpu(x, "x");
  if (bias) check_shape(*bias, "bias", kFloat, {out_features});
  const int64_t rows = x.shape()[0];
  auto y = paddle::empty({rows, out_features}, kFloat, x.place());
  bireme::linear_cpu(x.data<float>(), rows, in_features, packed.data<float>(), out_features,
                     bias ? bias->data<float>() : nullptr, y.data<float>());
  return {y};
}

std::vector<paddle::Tensor> Embedding(const paddle::Tensor& weight, const paddle::Tensor& ids, int64_t vocab_size) {
  check_shape(ids, "ids", kInt64, {kAnySize});
  check_not_empty(ids, "ids");
  if (weight.is_gpu()) return embedding_gpu(weight, ids, vocab_size);
  check_cpu(ids, "ids");
  const bool is_packed = weight.shape().size() == 3;
  if (is_packed) {
    check_packed(weight, vocab_size);
  } else {
    check_shape(weight, "weight", kFloat, {vocab_size, kAnySize});
  }
  const int64_t rows = ids.shape()[0], hidden = weight.shape()[1];
  auto out = paddle::empty({rows, hidden}, kFloat, weight.place());
  (is_packed ? bireme::embedding_packed_cpu : bireme::embedding_table_cpu)(
      weight.data<float>(), ids.data<int64_t>(), rows, vocab_size, hidden, out.data<float>());
  return {out};
}

PD_BUILD_OP(bireme_set_num_threads)
    .Inputs({"threads"}).Outputs({"threads_out"}).SetInplaceMap({{"threads", "threads_out"}})
    .SetKernelFn(PD_KERNEL(SetNumThreads));
PD_BUILD_OP(bireme_pack_weight).Inputs({"weight"}).Outputs({"packed"}).SetKernelFn(PD_KERNEL(PackWeight));
PD_BUILD_OP(bireme_linear)
    .Inputs({"x", "packed", paddle::Optional("bias")})
    .Attrs({"out_features: int64_t", "float32_output: bool", "batch_invariant: bool"}).Outputs({"y"})
    .SetKernelFn(PD_KERNEL(Linear));
PD_BUILD_OP(bireme_embedding)
    .Inputs({"weight", "ids"}).Attrs({"vocab_size: int64_t"}).Outputs({"out"}).SetKernelFn(PD_KERNEL(Embedding));
