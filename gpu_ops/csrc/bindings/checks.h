// Argument checks shared by the bindings. Ops write in place through raw pointers, so shape, type and contiguity are
// checked here, once, and the kernels trust their arguments.
#pragma once
#include <cstdint>
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
