// Argument checks shared by the bindings. Ops write in place through raw pointers, so shape, type and contiguity are
// checked here, once, and the kernels trust their arguments.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>

#include "paddle/extension.h"

inline void check_tensor(const paddle::Tensor& tensor, const char* name, paddle::DataType dtype, int64_t min_numel = 0) {
  PD_CHECK(tensor.dtype() == dtype, name, ": wrong dtype");
  PD_CHECK(tensor.numel() >= min_numel, name, ": has ", tensor.numel(), " elements, needs ", min_numel);
}

// Outputs of in-place ops arrive as const inputs; the op owns the right to write them (SetInplaceMap).
template <typename T>
inline T* mutable_data(const paddle::Tensor& tensor) {
  return const_cast<T*>(tensor.data<T>());
}

// A dimension that a shape check leaves open.
constexpr int64_t kAnySize = -1;

template <typename Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text = "[";
  for (int64_t size : sizes) {
    if (text.size() > 1) text += ", ";
    text += size == kAnySize ? "any" : std::to_string(size);
  }
  return text + "]";
}

// Exact dtype and shape; the error names the tensor, what it has and what the op needs.
inline void check_shape(const paddle::Tensor& tensor, const char* name, paddle::DataType dtype,
                        std::initializer_list<int64_t> sizes) {
  PD_CHECK(tensor.dtype() == dtype, name, ": has dtype ", phi::DataTypeToString(tensor.dtype()), ", needs ",
           phi::DataTypeToString(dtype));
  const std::vector<int64_t> actual = tensor.shape();
  bool same = actual.size() == sizes.size();
  size_t axis = 0;
  for (int64_t size : sizes) {
    same = same && (size == kAnySize || actual[axis] == size);
    ++axis;
  }
  PD_CHECK(same, name, ": has shape ", shape_text(actual), ", needs ", shape_text(sizes));
}

// Ops whose CUDA kernel has not joined yet refuse device tensors instead of reading device memory from the host.
inline void check_cpu(const paddle::Tensor& tensor, const char* name) {
  PD_CHECK(tensor.is_cpu(), name, ": lies on a device for which this op has no kernel, needs a CPU tensor");
}

// Ops that return a tensor need elements to return: Paddle 2.6 takes an empty output for one that was forgotten.
inline void check_not_empty(const paddle::Tensor& tensor, const char* name) {
  PD_CHECK(tensor.numel() > 0, name, ": has no elements, needs at least one row");
}

// Data of a tensor that may have no elements; Paddle refuses to hand out the pointer of an empty one.
template <typename T>
T* data_or_null(const paddle::Tensor& tensor) {
  return tensor.numel() ? const_cast<T*>(tensor.data<T>()) : nullptr;
}

// Slots of `rows` sampling rows; the tensor may be longer. -1 means no slot.
inline void check_sample_slots(const paddle::Tensor& sample_slots, int64_t rows, int64_t slots) {
  check_shape(sample_slots, "sample_slots", paddle::DataType::INT32, {kAnySize});
  PD_CHECK(sample_slots.numel() >= rows, "sample_slots: has ", sample_slots.numel(), " rows, needs ", rows);
  const int32_t* slot = data_or_null<int32_t>(sample_slots);
  for (int64_t row = 0; row < rows; ++row) {
    PD_CHECK(slot[row] >= -1 && slot[row] < slots, "sample_slots: row ", row, " names slot ", slot[row], ", needs -1 to ",
             slots - 1);
  }
}
