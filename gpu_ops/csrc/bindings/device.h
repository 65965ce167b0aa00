// Where a tensor lies, and what the CUDA kernels need of it. Without CUDA every branch on kWithCuda is discarded, so that the
// library links without the kernels.
#pragma once
#include <stdexcept>

#include "kernels/device/cuda/device.h"
#include "bindings/checks.h"

#ifdef BIREME_WITH_CUDA
constexpr bool kWithCuda = true;
inline bireme::Stream stream_of(const paddle::Tensor& tensor) { return tensor.stream(); }
// Paddle tells the computing stream of a device by a tensor that lies on it; the one kept here is never freed.
inline bireme::Stream current_stream() {
  static thread_local int device = -1;
  static thread_local paddle::Tensor* probe = nullptr;
  if (device != bireme::current_device()) {
    device = bireme::current_device();
    probe = new paddle::Tensor(paddle::empty({1}, paddle::DataType::UINT8, paddle::GPUPlace(device)));
  }
  return probe->stream();
}
#else
constexpr bool kWithCuda = false;
inline bireme::Stream stream_of(const paddle::Tensor&) { return nullptr; }
inline bireme::Stream current_stream() { return nullptr; }
#endif

// The type that an op computes in: float32 on the CPU, float16 or bfloat16 on the GPU.
inline paddle::DataType float_type(const paddle::Tensor& tensor, const char* name) {
  if (tensor.is_cpu()) return paddle::DataType::FLOAT32;
  PD_CHECK(kWithCuda && tensor.is_gpu(), name, ": lies on a device for which this build has no kernels");
  PD_CHECK(tensor.dtype() == paddle::DataType::FLOAT16 || tensor.dtype() == paddle::DataType::BFLOAT16, name, ": has dtype ",
           phi::DataTypeToString(tensor.dtype()), ", needs float16 or bfloat16 on the GPU");
  return tensor.dtype();
}

inline bireme::Half half_of(paddle::DataType dtype) {
  return dtype == paddle::DataType::FLOAT16 ? bireme::Half::kFloat16 : bireme::Half::kBfloat16;
}

// The place that all tensors of an op must share: the CPU, or the GPU where this build has kernels for it.
inline void check_place(const paddle::Tensor& tensor, const char* name) {
  PD_CHECK(tensor.is_cpu() || (kWithCuda && tensor.is_gpu()), name, ": lies on a device for which this build has no kernels");
}

inline void check_same_place(const paddle::Tensor& first, const char* name) { check_place(first, name); }
template <typename... Rest>
void check_same_place(const paddle::Tensor& first, const char* name, const paddle::Tensor& second, const char* second_name,
                      const Rest&... rest) {
  PD_CHECK(first.is_gpu() == second.is_gpu() && first.is_cpu() == second.is_cpu(), second_name, ": lies elsewhere than ", name);
  check_same_place(first, name, rest...);
}

// Rows of floats on the GPU are read and written in pieces of 8.
inline void check_gpu_columns(int64_t columns, const char* name) {
  PD_CHECK(columns % 8 == 0, name, ": has ", columns, " columns, needs a multiple of 8 on the GPU");
}

// Staging arrays may also lie in pinned memory, which the GPU reads over the bus. `on_gpu`: the op runs there.
inline void check_staging(const paddle::Tensor& tensor, const char* name, bool on_gpu) {
  PD_CHECK(tensor.numel() == 0 || (on_gpu ? tensor.is_gpu() || tensor.is_gpu_pinned() : tensor.is_cpu()), name,
           on_gpu ? ": needs to lie on the GPU or in pinned memory" : ": needs to lie on the CPU");
}

// Whether the host can read the values, and so validate them.
inline bool host_readable(const paddle::Tensor& tensor) { return !tensor.is_gpu(); }

// Slots of `rows` sampling rows, which may only be looked at where the host can read them.
inline void check_slots(const paddle::Tensor& sample_slots, int64_t rows, int64_t slots, bool on_gpu) {
  if (!on_gpu) return check_sample_slots(sample_slots, rows, slots);
  check_shape(sample_slots, "sample_slots", paddle::DataType::INT32, {kAnySize});
  PD_CHECK(sample_slots.numel() >= rows, "sample_slots: has ", sample_slots.numel(), " rows, needs ", rows);
  check_staging(sample_slots, "sample_slots", true);
}

// Runs what enqueues a kernel. Its errors leave as Paddle's own: 2.6 ends the process at any other exception.
template <typename Enqueue>
void on_device(const Enqueue& enqueue) {
  try {
    enqueue();
  } catch (const std::runtime_error& error) {
    PD_THROW(error.what());
  }
}

// Untyped data of a tensor that the op may write.
inline void* raw_data(const paddle::Tensor& tensor) { return const_cast<void*>(tensor.data()); }
